/* One zstd frame to exactly so many bytes.  Any thread; each has a context of its own. */
#ifndef CAFS_UNFOLD_H
#define CAFS_UNFOLD_H

#include <stdbool.h>
#include <stddef.h>

/* False unless *frame* is one frame, ends where it should and makes *length* bytes. */
bool cafs_unfold(void *target, size_t length, const void *frame, size_t frame_length);

#endif
