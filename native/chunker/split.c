/* See split.h.  The algorithm: Xia et al., "The Design of Fast Content-Defined Chunking for
 * Data Deduplication Based Storage Systems" (IEEE TPDS 2020), with these choices:
 *
 * - The rolling hash of position L covers exactly the 64 bytes before L, also at min_size:
 *   whether L is a candidate never depends on where the slice began.
 * - The judged bits are the highest ones: they are those that all, or nearly all, of the
 *   64 bytes have been shifted into.  "All zero" is then one comparison.
 */
#include "split.h"

#include "gear_table.h"

enum {
    WINDOW = 64,
    NORMALIZATION = 2,
    MIN_AVG_SIZE = 4 << 10,
    MAX_AVG_SIZE = 4 << 20,
    MAX_SIZE = (16 << 20) - 1,
};

const char *split_params_fault(const struct split_params *params)
{
    if (params->avg_size < MIN_AVG_SIZE || params->avg_size > MAX_AVG_SIZE)
        return "avg_size must be between 4 KiB and 4 MiB";
    if ((params->avg_size & (params->avg_size - 1)) != 0)
        return "avg_size must be a power of two";
    if (params->min_size < WINDOW || params->min_size > params->avg_size)
        return "min_size must be between 64 and avg_size";
    if (params->max_size < params->avg_size || params->max_size > MAX_SIZE)
        return "max_size must be between avg_size and 16 MiB - 1";
    return NULL;
}

void split_begin(struct split_walk *walk, const struct split_params *params,
                 const uint8_t *data, size_t size, bool final)
{
    /* Position 0 is never asked for: marks are looked for behind the start of a slice. */
    const struct split_mark not_searched = {0, ZIP_NONE};
    *walk = (struct split_walk){data, size, final, *params, not_searched, not_searched};
}

static inline uint64_t roll(uint64_t hash, uint8_t byte)
{
    return (hash << 1) + GEAR[byte];
}

/* Hashes below this have their `bits` highest bits zero. */
static uint64_t threshold(int bits)
{
    return UINT64_C(1) << (64 - bits);
}

/* Rolls over the bytes [*at, stop); true, with *at behind the byte, at the first hash below
 * `limit`. */
static bool roll_until(const uint8_t *data, size_t *at, size_t stop, uint64_t *hash,
                       uint64_t limit)
{
    uint64_t h = *hash;
    size_t i = *at;

    /* Eight steps a turn: the counting and jumping of a plain loop was measured to cost more
     * than all the rest, 1.0 ns a byte instead of 0.44. */
    for (; i < stop && stop - i >= 8; i += 8) {
#pragma GCC unroll 8
        for (size_t step = 0; step < 8; step++) {
            h = roll(h, data[i + step]);
            if (__builtin_expect(h < limit, 0)) {
                *at = i + step + 1;
                return true;
            }
        }
    }
    for (; i < stop; i++) {
        h = roll(h, data[i]);
        if (h < limit) {
            *at = i + 1;
            return true;
        }
    }
    *at = i;
    *hash = h;
    return false;
}

/* The first length in [min_size, limit] where the content says to cut; 0 if there is none. */
static size_t gear_cut(const struct split_params *params, const uint8_t *data, size_t limit)
{
    const int bits = __builtin_ctzl(params->avg_size);
    const size_t normal = params->avg_size - 1; /* the frequent cuts begin at avg_size */
    uint64_t hash = 0;
    size_t at = params->min_size - WINDOW;

    if (limit < params->min_size)
        return 0;
    while (at < params->min_size - 1) /* all but the last byte of the first window */
        hash = roll(hash, data[at++]);
    if (roll_until(data, &at, limit < normal ? limit : normal, &hash,
                   threshold(bits + NORMALIZATION)))
        return at;
    if (roll_until(data, &at, limit, &hash, threshold(bits - NORMALIZATION)))
        return at;
    return 0;
}

/* The first mark at or behind `from`, without entries of the directory if so asked. */
static struct split_mark next_mark(struct split_walk *walk, size_t from, bool in_directory)
{
    struct split_mark *known = in_directory ? &walk->next_outside_directory : &walk->next_any;

    if (known->at >= from)
        return *known;
    for (size_t at = from;; at++) {
        size_t unused;
        at = zip_find_pk(walk->data, at, walk->size);
        known->at = at;
        if (at == walk->size) {
            known->mark = ZIP_NONE;
            return *known;
        }
        known->mark = zip_mark_at(walk->data + at, walk->size - at, walk->final,
                                  walk->params.max_size, &unused);
        if (known->mark != ZIP_NONE && !(in_directory && known->mark == ZIP_DIRECTORY))
            return *known;
    }
}

size_t split_next(struct split_walk *walk, size_t start)
{
    const uint8_t *data = walk->data + start;
    const size_t avail = walk->size - start;
    size_t limit = avail < walk->params.max_size ? avail : walk->params.max_size;
    enum zip_mark mark = ZIP_NONE;

    if (walk->params.zip_members) {
        size_t header_size;
        const enum zip_mark kind =
            zip_mark_at(data, avail, walk->final, walk->params.max_size, &header_size);
        if (kind == ZIP_UNDECIDED)
            return start;
        if (kind == ZIP_LOCAL) {
            if (header_size <= avail)
                return start + header_size;
            return walk->final ? walk->size : start;
        }
        const struct split_mark next = next_mark(walk, start + 1, kind == ZIP_DIRECTORY);
        if (next.at - start < limit) {
            limit = next.at - start;
            mark = next.mark;
        }
    }

    const size_t cut = gear_cut(&walk->params, data, limit);
    if (cut != 0)
        return start + cut;
    if (mark == ZIP_UNDECIDED)
        return start;
    if (mark != ZIP_NONE || limit == walk->params.max_size || walk->final)
        return start + limit;
    return start;
}
