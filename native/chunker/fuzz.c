/* Fuzz target for the kernels: any bytes, cut and hashed, must keep the promises of split.h.
 *
 * The first bytes choose parameters and piece sizes, the rest is the content.  Built with
 * libFuzzer:
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined fuzz.c split.c zip_marks.c sha256.c
 *         sha256_lanes.c -lcrypto
 * or with fuzz_main.c, which brings its own inputs, by any compiler.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sha256.h"
#include "split.h"

enum { CHOICES = 4, MAX_ENDS = 1 << 16 };

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);

#define REQUIRE(condition)                                                      \
    do {                                                                        \
        if (!(condition)) {                                                     \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            abort();                                                            \
        }                                                                       \
    } while (0)

static struct split_params choose_params(const uint8_t *choices)
{
    static const size_t mins[] = {64, 65, 1000, 4096};
    static const size_t maxes[] = {4096, 4097, 10000, 16384};
    return (struct split_params){
        .min_size = mins[choices[0] & 3],
        .avg_size = 4096,
        .max_size = maxes[choices[0] >> 2 & 3],
        .zip_members = (choices[0] & 16) == 0,
    };
}

/* A copy in memory of exactly its size, so that a sanitizer sees any byte read too far. */
static uint8_t *exact_copy(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size != 0 ? size : 1);
    REQUIRE(copy != NULL);
    memcpy(copy, data, size);
    return copy;
}

/* Appends the certain ends of data[start..size) to ends; returns how many there are. */
static size_t collect(const struct split_params *params, const uint8_t *data, size_t start,
                      size_t size, bool final, size_t *ends, size_t count)
{
    struct split_walk walk;
    uint8_t *copy = exact_copy(data + start, size - start);
    size_t at = 0;

    split_begin(&walk, params, copy, size - start, final);
    while (at < size - start) {
        const size_t end = split_next(&walk, at);
        if (end == at) {
            REQUIRE(!final);
            REQUIRE(size - start - at < params->max_size + 30);
            break;
        }
        REQUIRE(end > at && end <= size - start && end - at <= params->max_size);
        REQUIRE(params->zip_members || end - at >= params->min_size || end == size - start);
        REQUIRE(count < MAX_ENDS);
        ends[count++] = start + end;
        at = end;
    }
    free(copy);
    return count;
}

static void check_pieces(const struct split_params *params, const uint8_t *choices,
                         const uint8_t *data, size_t size, const size_t *whole, size_t count)
{
    static size_t ends[MAX_ENDS];
    size_t found = 0, start = 0, arrived = 0, piece = 0;

    while (arrived < size) {
        const size_t step = 1 + (size_t)choices[1 + piece++ % (CHOICES - 1)] * 37;
        arrived = size - arrived < step ? size : arrived + step;
        found = collect(params, data, start, arrived, arrived == size, ends, found);
        start = found != 0 ? ends[found - 1] : 0;
    }
    REQUIRE(found == count);
    REQUIRE(found == 0 || memcmp(ends, whole, count * sizeof *ends) == 0);
}

static void check_digests(const uint8_t *data, size_t size, const size_t *ends, size_t count)
{
    uint8_t *copy = exact_copy(data, size);
    uint8_t *expected = malloc(count * SHA256_SIZE + 1);
    uint8_t *found = malloc(count * SHA256_SIZE + 1);

    REQUIRE(expected != NULL && found != NULL);
    REQUIRE(sha256_slices(SHA256_OPENSSL, copy, ends, count, expected));
    for (enum sha256_kernel kernel = SHA256_AUTO; kernel < SHA256_KERNELS; kernel++) {
        if (!sha256_can(kernel))
            continue;
        REQUIRE(sha256_slices(kernel, copy, ends, count, found));
        REQUIRE(memcmp(expected, found, count * SHA256_SIZE) == 0);
    }
    free(found);
    free(expected);
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    static size_t ends[MAX_ENDS];

    if (size < CHOICES || !sha256_setup())
        return 0;
    const struct split_params params = choose_params(input);
    const uint8_t *data = input + CHOICES;
    size -= CHOICES;
    REQUIRE(split_params_fault(&params) == NULL);

    const size_t count = collect(&params, data, 0, size, true, ends, 0);
    REQUIRE(size == 0 ? count == 0 : ends[count - 1] == size);
    check_pieces(&params, input, data, size, ends, count);
    check_digests(data, size, ends, count);
    return 0;
}
