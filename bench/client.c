/* The benchmarks' client: tight loops of system calls, so that what is measured is the
 * filesystem and not the one who asks.
 *
 * Owns its clock: only the loop itself is timed, not the start of the process nor the reading
 * of its input.  Prints one JSON object, or says what failed on stderr and exits with 1.
 *
 *   client stat LIST LOOPS there|missing   lstat each NUL-terminated path of the file LIST
 *   client create DIR COUNT SIZE SEED      create, write SIZE bytes, close
 *   client unlink DIR COUNT                remove what create made
 *   client list DIR LOOPS                  read the directory, names only
 *   client write PATH SOURCE BLOCK         write SOURCE's bytes in blocks, fsync at the end
 *   client read PATH BLOCK                 read from start to end
 *   client random PATH COUNT SEED          4 KiB writes at random places, fsync at the end
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what, const char *path)
{
    fprintf(stderr, "%s %s: %s\n", what, path, strerror(errno));
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int report(double seconds, uint64_t operations, uint64_t bytes)
{
    printf("{\"seconds\": %.9f, \"operations\": %llu, \"bytes\": %llu}\n", seconds,
           (unsigned long long)operations, (unsigned long long)bytes);
    return 0;
}

static uint64_t number(const char *text)
{
    char *end;
    unsigned long long value;
    errno = 0;
    value = strtoull(text, &end, 10);
    if (errno != 0 || *text == '\0' || *end != '\0') {
        errno = EINVAL;
        fail("number", text);
    }
    return value;
}

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static uint64_t seeded(uint64_t seed)
{
    /* Neighbouring seeds must not give neighbouring streams, and 0 would stay 0. */
    uint64_t state = (seed + 1) * UINT64_C(0x9E3779B97F4A7C15);
    for (int i = 0; i < 8; i++)
        next_random(&state);
    return state;
}

static void fill(unsigned char *buffer, size_t size, uint64_t *state)
{
    size_t at = 0;
    while (at < size) {
        uint64_t value = next_random(state);
        size_t part = size - at < sizeof value ? size - at : sizeof value;
        memcpy(buffer + at, &value, part);
        at += part;
    }
}

static void *room(size_t size)
{
    void *memory = malloc(size ? size : 1);
    if (memory == NULL)
        fail("memory for", "a buffer");
    return memory;
}

static unsigned char *whole(const char *path, size_t *size)
{
    struct stat st;
    unsigned char *bytes;
    size_t at = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) != 0)
        fail("open", path);
    *size = (size_t)st.st_size;
    bytes = room(*size);
    while (at < *size) {
        ssize_t got = read(fd, bytes + at, *size - at);
        if (got <= 0)
            fail("read", path);
        at += (size_t)got;
    }
    close(fd);
    return bytes;
}

static void write_all(int fd, const unsigned char *bytes, size_t size, const char *path)
{
    while (size > 0) {
        ssize_t put = write(fd, bytes, size);
        if (put <= 0)
            fail("write", path);
        bytes += put;
        size -= (size_t)put;
    }
}

static int do_stat(const char *list, uint64_t loops, const char *expected)
{
    size_t size;
    char *paths = (char *)whole(list, &size);
    int missing = strcmp(expected, "missing") == 0;
    uint64_t count = 0;
    double start = now();
    for (uint64_t loop = 0; loop < loops; loop++) {
        for (const char *path = paths; path < paths + size; path += strlen(path) + 1) {
            struct stat st;
            int answer = lstat(path, &st);
            if (missing ? (answer == 0 || errno != ENOENT) : answer != 0)
                fail(missing ? "expected ENOENT for" : "lstat", path);
            count++;
        }
    }
    return report(now() - start, count, 0);
}

static int do_create(const char *dir, uint64_t count, size_t size, uint64_t seed)
{
    unsigned char *buffer = room(size);
    uint64_t state = seeded(seed);
    char path[4096];
    double start;
    fill(buffer, size, &state);
    start = now();
    for (uint64_t i = 0; i < count; i++) {
        int fd;
        uint64_t mark = seeded(seed * UINT64_C(1000003) + i);
        /* Eight bytes make each content one that was never seen before. */
        memcpy(buffer, &mark, size < sizeof mark ? size : sizeof mark);
        snprintf(path, sizeof path, "%s/f%08llu", dir, (unsigned long long)i);
        fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        if (fd < 0)
            fail("create", path);
        write_all(fd, buffer, size, path);
        if (close(fd) != 0)
            fail("close", path);
    }
    return report(now() - start, count, count * size);
}

static int do_unlink(const char *dir, uint64_t count)
{
    char path[4096];
    double start = now();
    for (uint64_t i = 0; i < count; i++) {
        snprintf(path, sizeof path, "%s/f%08llu", dir, (unsigned long long)i);
        if (unlink(path) != 0)
            fail("unlink", path);
    }
    return report(now() - start, count, 0);
}

static int do_list(const char *dir, uint64_t loops)
{
    uint64_t count = 0;
    double start = now();
    for (uint64_t loop = 0; loop < loops; loop++) {
        DIR *opened = opendir(dir);
        if (opened == NULL)
            fail("opendir", dir);
        errno = 0;
        while (readdir(opened) != NULL)
            count++;
        if (errno != 0)
            fail("readdir", dir);
        closedir(opened);
    }
    return report(now() - start, count, 0);
}

static int do_write(const char *path, const char *source, size_t block)
{
    size_t size;
    unsigned char *bytes = whole(source, &size);
    double start = now();
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        fail("create", path);
    for (size_t at = 0; at < size; at += block)
        write_all(fd, bytes + at, size - at < block ? size - at : block, path);
    if (fsync(fd) != 0)
        fail("fsync", path);
    if (close(fd) != 0)
        fail("close", path);
    return report(now() - start, (size + block - 1) / block, size);
}

static int do_read(const char *path, size_t block)
{
    unsigned char *buffer = room(block);
    uint64_t total = 0, count = 0;
    double start = now();
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        fail("open", path);
    for (;;) {
        ssize_t got = read(fd, buffer, block);
        if (got < 0)
            fail("read", path);
        if (got == 0)
            break;
        total += (uint64_t)got;
        count++;
    }
    close(fd);
    return report(now() - start, count, total);
}

static int do_random(const char *path, uint64_t count, uint64_t seed)
{
    enum { BLOCK = 4096 };
    unsigned char buffer[BLOCK];
    uint64_t state = seeded(seed), blocks;
    struct stat st;
    double start;
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) != 0)
        fail("open", path);
    blocks = (uint64_t)st.st_size / BLOCK;
    if (blocks == 0) {
        errno = EINVAL;
        fail("less than 4 KiB in", path);
    }
    start = now();
    for (uint64_t i = 0; i < count; i++) {
        off_t at = (off_t)(next_random(&state) % blocks * BLOCK);
        fill(buffer, BLOCK, &state);
        if (pwrite(fd, buffer, BLOCK, at) != BLOCK)
            fail("pwrite", path);
    }
    if (fsync(fd) != 0)
        fail("fsync", path);
    if (close(fd) != 0)
        fail("close", path);
    return report(now() - start, count, count * BLOCK);
}

int main(int argc, char **argv)
{
    const char *command = argc > 1 ? argv[1] : "";
    if (argc == 5 && strcmp(command, "stat") == 0)
        return do_stat(argv[2], number(argv[3]), argv[4]);
    if (argc == 6 && strcmp(command, "create") == 0)
        return do_create(argv[2], number(argv[3]), number(argv[4]), number(argv[5]));
    if (argc == 4 && strcmp(command, "unlink") == 0)
        return do_unlink(argv[2], number(argv[3]));
    if (argc == 4 && strcmp(command, "list") == 0)
        return do_list(argv[2], number(argv[3]));
    if (argc == 5 && strcmp(command, "write") == 0 && number(argv[4]) > 0)
        return do_write(argv[2], argv[3], number(argv[4]));
    if (argc == 4 && strcmp(command, "read") == 0 && number(argv[3]) > 0)
        return do_read(argv[2], number(argv[3]));
    if (argc == 5 && strcmp(command, "random") == 0)
        return do_random(argv[2], number(argv[3]), number(argv[4]));
    fprintf(stderr, "bench client: wrong arguments; see the top of client.c\n");
    return 2;
}
