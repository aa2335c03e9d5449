/* A window: some consecutive parts of a recipe, read, verified and decoded into memory.
 *
 * Owns the reading of packs.  Runs in a worker or in one of its threads; what belongs to one request
 * (`struct cafs_packs`, a window) is used by one of them at a time.  No nginx.
 */
#ifndef CAFS_WINDOW_H
#define CAFS_WINDOW_H

#include "recipe.h"

#define CAFS_OPEN_PACKS 16

/* The packs that a request has open.  Kept open, so that a pack that is compacted away meanwhile can
 * still be read: for 4 GB in packs of the usual size there are places enough. */
struct cafs_packs {
    int directory; /* borrowed */
    unsigned used;
    unsigned next; /* which one goes when there is no place left */
    uint32_t numbers[CAFS_OPEN_PACKS];
    int fds[CAFS_OPEN_PACKS];
};

enum cafs_fill {
    CAFS_FILLED,
    CAFS_NOT_CACHED, /* reading would wait for the disk */
    CAFS_BAD_CHUNK,  /* `bad` and `why` say which and how */
    CAFS_SYSTEM      /* `error` is the errno */
};

struct cafs_window {
    uint8_t *bytes;
    size_t space;
    size_t first; /* parts [first, last) */
    size_t last;
    uint64_t start; /* bytes [start, end) of the blob, which lie at `bytes` once it is filled */
    uint64_t end;
    uint8_t *scratch; /* stored bytes of what has to be decoded */
    size_t scratch_space;
    bool verify;
    size_t bad;
    const char *why;
    int error;
};

void cafs_packs_init(struct cafs_packs *packs, int directory);
void cafs_packs_close(struct cafs_packs *packs);

/* Have *fd*, which is theirs from now on, as the first pack that is open. */
void cafs_packs_adopt(struct cafs_packs *packs, uint32_t number, int fd);

/* The descriptor of a pack, or -1 with errno. */
int cafs_packs_open(struct cafs_packs *packs, uint32_t number);

/* Open the packs of a recipe, as many as there are places for.  What cannot be opened is noticed when
 * it is read. */
void cafs_packs_hold(struct cafs_packs *packs, const struct cafs_recipe *recipe);

/* Choose the parts from the one that has byte *at* on: up to *wanted* bytes, but at least one part
 * (of a hole at most *wanted* bytes), none that begins at *end* or behind.  False: no memory. */
bool cafs_window_plan(struct cafs_window *window, const struct cafs_recipe *recipe, uint64_t at, uint64_t end,
                      size_t wanted);

/* Fill what was planned.  With *cached_only* nothing is waited for. */
enum cafs_fill cafs_window_fill(struct cafs_window *window, const struct cafs_recipe *recipe,
                                struct cafs_packs *packs, bool cached_only);

/* Whether the bytes of a chunk are still where it lay, and right.  Waits for the disk. */
bool cafs_packs_have(struct cafs_packs *packs, const struct cafs_recipe *recipe, size_t part);

/* Ask the kernel to begin reading what comes behind the window, up to *bytes* of the blob, and lies
 * elsewhere.  What goes on in the same pack it reads ahead by itself, and better: into large folios,
 * from which copying takes two thirds of the time. */
void cafs_window_ahead(const struct cafs_window *window, const struct cafs_recipe *recipe,
                       struct cafs_packs *packs, uint64_t bytes);

void cafs_window_free(struct cafs_window *window);

#endif
