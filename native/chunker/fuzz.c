/* Fuzz target for the kernels: any bytes, cut and hashed, must keep the promises of split.h.
 *
 * The first bytes choose parameters and piece sizes, the rest is the content.  Built with
 * libFuzzer:
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined fuzz.c cut.c split.c
 *         zip_marks.c sha256.c sha256_lanes.c -lcrypto
 * or with fuzz_main.c, which brings its own inputs, by any compiler.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cut.h"
#include "sha256.h"

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

/* The ends of all slices of the content; returns how many there are. */
static size_t collect(const struct split_params *params, const uint8_t *data, size_t size,
                      size_t *ends)
{
    struct split_walk walk;
    uint8_t *copy = exact_copy(data, size);
    size_t at = 0, count = 0;

    split_begin(&walk, params, copy, size, true);
    while (at < size) {
        const size_t end = split_next(&walk, at);
        REQUIRE(end > at && end <= size && end - at <= params->max_size);
        REQUIRE(params->zip_members || end - at >= params->min_size || end == size);
        REQUIRE(count < MAX_ENDS);
        ends[count++] = end;
        at = end;
    }
    free(copy);
    return count;
}

/* The same bytes in pieces: what is left behind by one cut comes before the next piece. */
static void check_pieces(const struct split_params *params, const uint8_t *choices,
                         const uint8_t *data, size_t size, const size_t *whole, size_t count)
{
    size_t found = 0, start = 0, arrived = 0, piece = 0;

    while (arrived < size) {
        const size_t step = 1 + (size_t)choices[1 + piece++ % (CHOICES - 1)] * 37;
        const size_t next = size - arrived < step ? size : arrived + step;
        uint8_t *left = exact_copy(data + start, arrived - start);
        uint8_t *fresh = exact_copy(data + arrived, next - arrived);
        struct ends ends = {NULL, 0, 0};
        REQUIRE(cut_find(&ends, params, (struct bytes){left, arrived - start},
                         (struct bytes){fresh, next - arrived}, next == size));
        for (size_t i = 0; i < ends.count; i++)
            REQUIRE(found < count && start + ends.at[i] == whole[found++]);
        start += ends.count != 0 ? ends.at[ends.count - 1] : 0;
        arrived = next;
        REQUIRE(arrived - start < params->max_size + SPLIT_UNDECIDED_MAX);
        free(ends.at);
        free(fresh);
        free(left);
    }
    REQUIRE(found == count);
}

static void check_digests(const uint8_t *data, size_t size, const size_t *ends, size_t count)
{
    uint8_t *copy = exact_copy(data, size);
    uint8_t *expected = malloc(count * SHA256_SIZE + 1);
    uint8_t *found = malloc(count * SHA256_SIZE + 1);
    struct bytes *slices = malloc((count + 1) * sizeof *slices);
    size_t start = 0;

    REQUIRE(expected != NULL && found != NULL && slices != NULL);
    for (size_t i = 0; i < count; i++) {
        slices[i] = (struct bytes){copy + start, ends[i] - start};
        start = ends[i];
    }
    REQUIRE(sha256_each(SHA256_OPENSSL, slices, count, expected));
    for (enum sha256_kernel kernel = SHA256_AUTO; kernel < SHA256_KERNELS; kernel++) {
        if (!sha256_can(kernel))
            continue;
        REQUIRE(sha256_each(kernel, slices, count, found));
        REQUIRE(memcmp(expected, found, count * SHA256_SIZE) == 0);
    }
    free(slices);
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

    const size_t count = collect(&params, data, size, ends);
    REQUIRE(size == 0 ? count == 0 : ends[count - 1] == size);
    check_pieces(&params, input, data, size, ends, count);
    check_digests(data, size, ends, count);
    return 0;
}
