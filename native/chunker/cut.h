/* Where some bytes that lie in two places are to be cut: what was left behind by the last cut,
 * and what has come since.
 *
 * Joining the two would copy everything that is ever cut.  A cut is a place to start anew, so
 * only the bytes around the border are joined.
 */
#ifndef CAFS_CUT_H
#define CAFS_CUT_H

#include <stdbool.h>
#include <stddef.h>

#include "bytes.h"
#include "split.h"

struct ends {
    size_t *at; /* ascending, counted from the first byte left behind */
    size_t count;
    size_t room;
};

/* Finds the ends of all slices of `left` followed by `data` that no later byte can change.
 * `left` begins at a cut; if `final`, the content ends with `data`.  False if memory ran out.
 * Fill *ends with zeros before, and free ends->at afterwards in any case. */
bool cut_find(struct ends *ends, const struct split_params *params, struct bytes left,
              struct bytes data, bool final);

#endif
