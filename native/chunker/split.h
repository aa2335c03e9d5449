/* Content-defined cutting: FastCDC with normalized chunking, plus cuts at zip members.
 *
 * Invariant: where a slice ends depends only on the parameters and on the bytes from its
 * beginning on.  So any cut is a place to start anew, and the cuts are the same however the
 * bytes arrive.
 *
 * Plain C without Python and without hidden state; safe on any bytes.
 */
#ifndef CAFS_SPLIT_H
#define CAFS_SPLIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "zip_marks.h"

/* Sizes are in bytes. */
struct split_params {
    size_t min_size; /* no cut before, but for those at zip members */
    size_t avg_size; /* a power of two: where the rare cuts give way to frequent ones */
    size_t max_size; /* no slice is longer */
    bool zip_members;
};

/* Where a slice ends is certain with max_size and this many bytes behind its beginning: a zip
 * header at its very end may need them. */
enum { SPLIT_UNDECIDED_MAX = 30 };

/* What the next mark of a kind was found to be; marks are searched for once, in order. */
struct split_mark {
    size_t at;
    enum zip_mark mark;
};

/* A walk over one buffer that begins at a cut.  Fill it with split_begin. */
struct split_walk {
    const uint8_t *data;
    size_t size;
    bool final;
    struct split_params params;
    struct split_mark next_any;
    struct split_mark next_outside_directory;
};

/* NULL if the parameters can be used, else which bound they break, in words. */
const char *split_params_fault(const struct split_params *params);

/* The parameters must be without fault. If `final`, the data end with the buffer. */
void split_begin(struct split_walk *walk, const struct split_params *params,
                 const uint8_t *data, size_t size, bool final);

/* The end of the slice that begins at `start` (< size), which must not be less than any
 * start asked before in this walk.  Returns `start` itself if bytes that have not come yet
 * could change the answer; never if the walk is final. */
size_t split_next(struct split_walk *walk, size_t start);

#endif
