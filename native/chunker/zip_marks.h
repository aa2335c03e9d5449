/* Finding the places where a zip archive should be cut.
 *
 * Every answer depends only on the bytes from the asked position on, never on what came
 * before, so that cutting can start anew at any cut.  Sizes in headers are not believed:
 * writers that stream put zeros there and the truth into a data descriptor.
 */
#ifndef CAFS_ZIP_MARKS_H
#define CAFS_ZIP_MARKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum zip_mark {
    ZIP_NONE,       /* nothing begins here */
    ZIP_LOCAL,      /* a plausible local file header */
    ZIP_DIRECTORY,  /* an entry of the central directory */
    ZIP_DESCRIPTOR, /* a data descriptor */
    ZIP_UNDECIDED,  /* more bytes are needed to tell */
};

/* What begins at `at`, of which `avail` bytes are there.  If `final`, no more will come and
 * the answer is never ZIP_UNDECIDED.  A local header longer than `max_header` bytes, name
 * and extra field included, is not plausible.  If the answer is ZIP_LOCAL, *header_size is
 * set to the header's length, which may be more than `avail`. */
enum zip_mark zip_mark_at(const uint8_t *at, size_t avail, bool final, size_t max_header,
                          size_t *header_size);

/* The first position >= `from` where "PK" begins, or where the data end with "P"; `size` if
 * there is none. */
size_t zip_find_pk(const uint8_t *data, size_t from, size_t size);

#endif
