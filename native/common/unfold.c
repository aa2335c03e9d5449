#include "unfold.h"

#include <zstd.h>

bool cafs_unfold(void *target, size_t length, const void *frame, size_t frame_length)
{
    /* Making a context for each frame costs more than a small frame does.  A thread keeps its own
     * for as long as it lives, which is as long as its process. */
    static __thread ZSTD_DCtx *context;

    if (context == NULL && (context = ZSTD_createDCtx()) == NULL)
        return false;
    if (ZSTD_findFrameCompressedSize(frame, frame_length) != frame_length)
        return false;
    const size_t made = ZSTD_decompressDCtx(context, target, length, frame, frame_length);
    return !ZSTD_isError(made) && made == length;
}
