/* Drives fuzz.c where there is no libFuzzer: random and adversarial inputs from a seed.
 *
 *   fuzz_main SEED ROUNDS
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_INPUT = 60000 };

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);

static uint64_t state;

/* splitmix64: small, and the same on every machine. */
static uint64_t random_number(void)
{
    uint64_t z = state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static size_t below(size_t bound)
{
    return (size_t)(random_number() % bound);
}

/* Fills a run of at most `room` bytes with one kind of trouble; returns its length. */
static size_t put_run(uint8_t *at, size_t room)
{
    static const uint8_t header[] = "PK\3\4\x14\0\0\0\x08\0----------------\5\0\2\0hello<>";
    static const char *const signatures[] = {"PK\1\2", "PK\3\4", "PK\7\x08", "PK\5\6", "PK", "P"};
    const size_t kind = below(6);
    size_t size = below(kind == 0 ? 6000 : 300);

    if (kind == 4)
        size = 1 + below(sizeof header - 1);
    if (size > room)
        size = room;
    for (size_t i = 0; i < size; i++) {
        if (kind <= 1)
            at[i] = (uint8_t)random_number();
        else if (kind == 2)
            at[i] = (uint8_t)"PK\1\2\3\4\7\x08"[below(8)];
        else
            at[i] = 0;
    }
    if (kind == 4) {
        memcpy(at, header, size);
        if (size != 0 && below(3) == 0) /* one byte wrong: sizes, methods, signatures */
            at[below(size)] = (uint8_t)random_number();
    }
    if (kind == 5) {
        const char *signature = signatures[below(6)];
        const size_t length = strlen(signature);
        size = length < room ? length : room;
        memcpy(at, signature, size);
    }
    return size;
}

int main(int argc, char **argv)
{
    static uint8_t input[MAX_INPUT];

    if (argc != 3) {
        fprintf(stderr, "usage: %s SEED ROUNDS\n", argv[0]);
        return 2;
    }
    state = strtoull(argv[1], NULL, 10);
    for (uint64_t round = strtoull(argv[2], NULL, 10); round > 0; round--) {
        const size_t size = below(8) == 0 ? below(40) : below(MAX_INPUT);
        size_t at = 0;
        while (at < 4 && at < size)
            input[at++] = (uint8_t)random_number();
        while (at < size)
            at += put_run(input + at, size - at);
        LLVMFuzzerTestOneInput(input, size);
    }
    return 0;
}
