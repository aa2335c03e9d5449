/* See cut.h. */
#include "cut.h"

#include <stdlib.h>
#include <string.h>

static bool append(struct ends *ends, size_t end)
{
    if (ends->count == ends->room) {
        const size_t room = ends->room == 0 ? 256 : ends->room * 2;
        size_t *grown = realloc(ends->at, room * sizeof *grown);
        if (grown == NULL)
            return false;
        ends->at = grown;
        ends->room = room;
    }
    ends->at[ends->count++] = end;
    return true;
}

/* Appends the ends of the slices of `bytes` that begin before `stop`; *at is the last of them.
 * `base` is where the bytes lie in the whole. */
static bool walk(struct ends *ends, const struct split_params *params, struct bytes bytes,
                 bool final, size_t stop, size_t base, size_t *at)
{
    struct split_walk state;

    split_begin(&state, params, bytes.at, bytes.size, final);
    *at = 0;
    while (*at < stop) {
        const size_t end = split_next(&state, *at);
        if (end == *at)
            break;
        if (!append(ends, base + end))
            return false;
        *at = end;
    }
    return true;
}

/* The ends of the slices that begin in `left`, the last one in *at.  How much of `data` must be
 * copied for that is not known: most slices end long before the greatest size. */
static bool walk_border(struct ends *ends, const struct split_params *params, struct bytes left,
                        struct bytes data, bool final, size_t *at)
{
    const size_t decisive = params->max_size + SPLIT_UNDECIDED_MAX;
    const size_t most = data.size < decisive ? data.size : decisive;
    uint8_t *border = NULL;

    for (size_t window = params->avg_size;; window *= 2) {
        const size_t size = window < most ? window : most;
        const bool whole = size == data.size;
        uint8_t *grown = realloc(border, left.size + size);
        if (grown == NULL)
            break;
        border = grown;
        memcpy(border, left.at, left.size);
        memcpy(border + left.size, data.at, size);
        ends->count = 0;
        const struct bytes joined = {border, left.size + size};
        if (!walk(ends, params, joined, final && whole, left.size, 0, at))
            break;
        if (*at >= left.size || size == most) {
            free(border);
            return true;
        }
    }
    free(border);
    return false;
}

bool cut_find(struct ends *ends, const struct split_params *params, struct bytes left,
              struct bytes data, bool final)
{
    size_t at = 0;

    if (left.size != 0) {
        if (!walk_border(ends, params, left, data, final, &at))
            return false;
        if (at < left.size)
            return true; /* more must come to tell where this slice ends */
        at -= left.size;
    }
    const struct bytes rest = {data.at + at, data.size - at};
    return walk(ends, params, rest, final, rest.size, left.size + at, &at);
}
