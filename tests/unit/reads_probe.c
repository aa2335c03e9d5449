/* native/include/cafs_reads.h as functions, for tests/unit/test_reads.py. */
#include "cafs_reads.h"

int probe_note(void *base, size_t length, uint64_t ino, int from);
int probe_note(void *base, size_t length, uint64_t ino, int from)
{
    struct cafs_reads reads = {NULL, 0, 0};

    if (!cafs_reads_open(&reads, base, length))
        return 0;
    cafs_reads_note(&reads, ino, (enum cafs_reads_from)from);
    return 1;
}
