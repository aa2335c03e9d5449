/* Feeds the fuzz targets with bytes from a fixed seed: fuzz_main SEED ROUNDS.
 * The same targets run under libFuzzer when this file is left out and CAFS_FUZZ_TARGET names one:
 *   clang -fsanitize=fuzzer,address -DCAFS_FUZZ_TARGET=fuzz_recipe ... */
#include "fuzz.h"

#ifdef CAFS_FUZZ_TARGET

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CAFS_FUZZ_TARGET(data, size);
    return 0;
}

#else

#include <stdio.h>
#include <stdlib.h>

static uint64_t state;

static uint8_t random_byte(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint8_t)(state >> 24 & 0xff);
}

int main(int count, char **arguments)
{
    static void (*const targets[])(const uint8_t *, size_t) = {fuzz_lookup, fuzz_recipe, fuzz_window,
                                                               fuzz_link, fuzz_pending, fuzz_cachefile};
    if (count != 3) {
        fprintf(stderr, "usage: %s SEED ROUNDS\n", arguments[0]);
        return 2;
    }
    state = strtoull(arguments[1], NULL, 10) * 0x9e3779b97f4a7c15ULL + 1;
    for (unsigned long round = strtoul(arguments[2], NULL, 10); round > 0; round--) {
        for (size_t target = 0; target < sizeof targets / sizeof *targets; target++) {
            const size_t size = 64U + random_byte() * 24U;
            /* Of exactly this size, so that a sanitizer sees a byte too many. */
            uint8_t *data = malloc(size);
            if (data == NULL)
                return 1;
            for (size_t i = 0; i < size; i++)
                data[i] = random_byte();
            targets[target](data, size);
            free(data);
        }
    }
    return 0;
}

#endif
