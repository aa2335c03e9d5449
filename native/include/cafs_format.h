/* The layouts of docs/format.md for C: keys and values of the index, parts of recipes.
 *
 * Owns nothing but bytes: no I/O, no allocation, no state.  What comes from disk is never trusted:
 * every function that reads bytes is given their length, and answers false for anything that
 * docs/format.md does not allow.  tests/unit/test_format_header.py holds this file to the Python code.
 *
 * Needs xxhash.h (libxxhash 0.8 or later) and compiles it in, so nothing is to be linked.
 */
#ifndef CAFS_FORMAT_H
#define CAFS_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifndef XXH_INLINE_ALL
#define XXH_INLINE_ALL
#endif
#include <xxhash.h>

/* The newest that is understood. */
#define CAFS_FORMAT_VERSION 2

/* -- databases ------------------------------------------------------------------------------- */

/* In the order of docs/format.md; the number is part of each value's check. */
enum cafs_database {
    CAFS_META,
    CAFS_INODES,
    CAFS_ENTRIES,
    CAFS_SYMLINKS,
    CAFS_XATTRS,
    CAFS_ORPHANS,
    CAFS_BLOBS,
    CAFS_RECIPES,
    CAFS_BLOB_SHA256,
    CAFS_BLOB_SHA1,
    CAFS_CHUNKS,
    CAFS_CHUNK_SHA256,
    CAFS_PACKS,
    CAFS_DEAD,
    CAFS_UNHASHED,
    CAFS_DATABASES
};

/* The name by which LMDB knows a database; NULL for a number that is none. */
static inline const char *cafs_database_name(unsigned database)
{
    static const char *const names[CAFS_DATABASES] = {
        "meta",        "inodes",    "entries", "symlinks",     "xattrs", "orphans", "blobs",    "recipes",
        "blob_sha256", "blob_sha1", "chunks",  "chunk_sha256", "packs",  "dead",    "unhashed",
    };
    return database < CAFS_DATABASES ? names[database] : NULL;
}

/* Whether the values of a database end with a check; the others are empty. */
static inline bool cafs_database_is_checked(unsigned database)
{
    return database != CAFS_ORPHANS && database != CAFS_BLOB_SHA256 && database != CAFS_BLOB_SHA1 &&
           database != CAFS_CHUNK_SHA256 && database != CAFS_DEAD;
}

/* -- numbers --------------------------------------------------------------------------------- */

static inline uint64_t cafs_le(const uint8_t *at, size_t bytes)
{
    uint64_t number = 0;
    for (size_t i = bytes; i-- > 0;)
        number = number << 8 | at[i];
    return number;
}

static inline uint32_t cafs_le32(const uint8_t *at)
{
    return (uint32_t)cafs_le(at, 4);
}

static inline uint64_t cafs_le48(const uint8_t *at)
{
    return cafs_le(at, 6);
}

static inline uint64_t cafs_le64(const uint8_t *at)
{
    return cafs_le(at, 8);
}

/* Two's complement; no conversion that a compiler may choose. */
static inline int64_t cafs_le64_signed(const uint8_t *at)
{
    const uint64_t number = cafs_le64(at);
    int64_t value;
    memcpy(&value, &number, sizeof value);
    return value;
}

static inline void cafs_put_be(uint8_t *at, uint64_t number, size_t bytes)
{
    for (size_t i = bytes; i-- > 0; number >>= 8)
        at[i] = (uint8_t)(number & 0xff);
}

static inline uint64_t cafs_be(const uint8_t *at, size_t bytes)
{
    uint64_t number = 0;
    for (size_t i = 0; i < bytes; i++)
        number = number << 8 | at[i];
    return number;
}

/* -- keys ------------------------------------------------------------------------------------ */

#define CAFS_NUMBER_KEY 6
#define CAFS_ENTRY_KEY 14
#define CAFS_RECIPE_KEY 14
#define CAFS_DIGEST_KEY 14
#define CAFS_PACK_KEY 4
#define CAFS_DIGEST_PREFIX 8
#define CAFS_NAME_MAX 255
#define CAFS_COUNTERS_KEY "counters"

#define CAFS_ROOT 1
#define CAFS_COOKIE_MAX ((UINT64_C(1) << 63) - 1)
#define CAFS_COOKIE_MIN 3
/* Places that an entry may be away from its own, in a directory with CAFS_INODE_PROBED. */
#define CAFS_PROBES 64

/* inodes, symlinks, blobs, chunks, orphans, unhashed. */
static inline void cafs_number_key(uint8_t key[CAFS_NUMBER_KEY], uint64_t number)
{
    cafs_put_be(key, number, 6);
}

static inline void cafs_entry_key(uint8_t key[CAFS_ENTRY_KEY], uint64_t parent, uint64_t cookie)
{
    cafs_put_be(key, parent, 6);
    cafs_put_be(key + 6, cookie, 8);
}

static inline void cafs_recipe_key(uint8_t key[CAFS_RECIPE_KEY], uint64_t blob, uint64_t start)
{
    cafs_put_be(key, blob, 6);
    cafs_put_be(key + 6, start, 8);
}

/* The blob number (or parent) of a key, and the start (or cookie) behind it. */
static inline uint64_t cafs_key_number(const uint8_t *key)
{
    return cafs_be(key, 6);
}

static inline uint64_t cafs_key_second(const uint8_t *key)
{
    return cafs_be(key + 6, 8);
}

static inline void cafs_digest_key(uint8_t key[CAFS_DIGEST_KEY], const uint8_t *digest, uint64_t number)
{
    memcpy(key, digest, CAFS_DIGEST_PREFIX);
    cafs_put_be(key + CAFS_DIGEST_PREFIX, number, 6);
}

static inline uint64_t cafs_digest_number(const uint8_t key[CAFS_DIGEST_KEY])
{
    return cafs_be(key + CAFS_DIGEST_PREFIX, 6);
}

static inline void cafs_pack_key(uint8_t key[CAFS_PACK_KEY], uint32_t pack)
{
    cafs_put_be(key, pack, 4);
}

/* A name's own place in its directory. */
static inline uint64_t cafs_name_cookie(const void *name, size_t length)
{
    const uint64_t cookie = XXH3_64bits(name, length) & CAFS_COOKIE_MAX;
    return cookie < CAFS_COOKIE_MIN ? CAFS_COOKIE_MIN : cookie;
}

static inline uint64_t cafs_next_cookie(uint64_t cookie)
{
    return cookie >= CAFS_COOKIE_MAX ? CAFS_COOKIE_MIN : cookie + 1;
}

/* -- the check of a value -------------------------------------------------------------------- */

#define CAFS_CHECK 4

static inline uint32_t cafs_check(unsigned database, const void *key, size_t key_length, const void *value,
                                  size_t length)
{
    const uint64_t seed = XXH3_64bits_withSeed(key, key_length, database);
    return (uint32_t)(XXH3_64bits_withSeed(value, length, seed) & 0xffffffffU);
}

/* Whether a value as it lies in a checked database is right; then *length is without the check. */
static inline bool cafs_unseal(unsigned database, const void *key, size_t key_length, const void *value,
                               size_t *length)
{
    const uint8_t *bytes = value;
    if (*length < CAFS_CHECK)
        return false;
    const size_t rest = *length - CAFS_CHECK;
    if (cafs_check(database, key, key_length, value, rest) != cafs_le32(bytes + rest))
        return false;
    *length = rest;
    return true;
}

/* -- values; all lengths are without the check ----------------------------------------------- */

struct cafs_entry {
    uint64_t ino;
    uint8_t type; /* mode >> 12 */
    const uint8_t *name;
    size_t name_length;
};

static inline bool cafs_read_entry(struct cafs_entry *entry, const void *value, size_t length)
{
    const uint8_t *at = value;
    if (length < 8 || length > 7 + CAFS_NAME_MAX)
        return false;
    entry->ino = cafs_le48(at);
    entry->type = at[6];
    entry->name = at + 7;
    entry->name_length = length - 7;
    return true;
}

#define CAFS_INODE_LENGTH 68
#define CAFS_INODE_PROBED 1U

struct cafs_inode {
    uint32_t mode;
    uint32_t uid;
    uint32_t gid;
    uint32_t nlink;
    uint64_t size;
    int64_t atime_ns;
    int64_t mtime_ns;
    int64_t ctime_ns;
    uint64_t blob;
    uint64_t aux;
    uint32_t flags;
};

static inline bool cafs_read_inode(struct cafs_inode *inode, const void *value, size_t length)
{
    const uint8_t *at = value;
    if (length != CAFS_INODE_LENGTH)
        return false;
    inode->mode = cafs_le32(at);
    inode->uid = cafs_le32(at + 4);
    inode->gid = cafs_le32(at + 8);
    inode->nlink = cafs_le32(at + 12);
    inode->size = cafs_le64(at + 16);
    inode->atime_ns = cafs_le64_signed(at + 24);
    inode->mtime_ns = cafs_le64_signed(at + 32);
    inode->ctime_ns = cafs_le64_signed(at + 40);
    inode->blob = cafs_le64(at + 48);
    inode->aux = cafs_le64(at + 56);
    inode->flags = cafs_le32(at + 64);
    return true;
}

#define CAFS_BLOB_HEADER 68
#define CAFS_BLOB_UNHASHED 1U
#define CAFS_BLOB_ROWS 2U
#define CAFS_BLOB_HOLES 4U
#define CAFS_BLOB_AGED 8U
#define CAFS_BLOB_INNER 16U
#define CAFS_BLOB_LEFT 32U
#define CAFS_BLOB_NESTED 64U
#define CAFS_BLOB_MATED (CAFS_BLOB_AGED | CAFS_BLOB_INNER)
#define CAFS_BLOB_MATE 8

struct cafs_blob {
    uint64_t size;
    uint32_t refs;
    uint32_t flags;
    uint64_t mate;         /* with one of CAFS_BLOB_MATED: the other blob; else 0 */
    const uint8_t *sha256; /* 32 bytes */
    const uint8_t *sha1;   /* 20 bytes */
    const uint8_t *recipe; /* one row; nothing with CAFS_BLOB_ROWS */
    size_t recipe_length;
};

static inline bool cafs_read_blob(struct cafs_blob *blob, const void *value, size_t length)
{
    const uint8_t *at = value;
    if (length < CAFS_BLOB_HEADER)
        return false;
    blob->size = cafs_le64(at);
    blob->refs = cafs_le32(at + 8);
    blob->flags = cafs_le32(at + 12);
    blob->sha256 = at + 16;
    blob->sha1 = at + 48;
    blob->mate = 0;
    size_t header = CAFS_BLOB_HEADER;
    if (blob->flags & CAFS_BLOB_MATED) {
        header += CAFS_BLOB_MATE;
        if (length < header)
            return false;
        blob->mate = cafs_le64(at + CAFS_BLOB_HEADER);
    }
    blob->recipe = at + header;
    blob->recipe_length = length - header;
    return true;
}

#define CAFS_CHUNK_LENGTH 60

struct cafs_chunk {
    const uint8_t *sha256; /* 32 bytes */
    uint32_t pack;
    uint32_t offset;
    uint32_t stored_length;
    uint8_t codec;
    bool damaged; /* never to be read */
    uint32_t raw_length;
    uint64_t xxh3; /* of the stored bytes */
    uint32_t refs;
};

static inline bool cafs_read_chunk(struct cafs_chunk *chunk, const void *value, size_t length)
{
    const uint8_t *at = value;
    if (length != CAFS_CHUNK_LENGTH)
        return false;
    const uint32_t stored = cafs_le32(at + 40);
    chunk->sha256 = at;
    chunk->pack = cafs_le32(at + 32);
    chunk->offset = cafs_le32(at + 36);
    chunk->stored_length = stored & 0xffffffU;
    chunk->codec = (uint8_t)(stored >> 24 & 0x7fU);
    chunk->damaged = (stored >> 31) != 0;
    chunk->raw_length = cafs_le32(at + 44);
    chunk->xxh3 = cafs_le64(at + 48);
    chunk->refs = cafs_le32(at + 56);
    return true;
}

#define CAFS_PACK_RECORD 32
#define CAFS_PACK_SEALED 1U
#define CAFS_PACK_EMPTIED 2U

struct cafs_pack {
    uint64_t size;
    uint64_t live_bytes;
    uint32_t live_chunks;
    uint32_t flags;
    uint64_t emptied_ns;
};

static inline bool cafs_read_pack(struct cafs_pack *pack, const void *value, size_t length)
{
    const uint8_t *at = value;
    if (length != CAFS_PACK_RECORD)
        return false;
    pack->size = cafs_le64(at);
    pack->live_bytes = cafs_le64(at + 8);
    pack->live_chunks = cafs_le32(at + 16);
    pack->flags = cafs_le32(at + 20);
    pack->emptied_ns = cafs_le64(at + 24);
    return true;
}

#define CAFS_COUNTERS_LENGTH 104

/* Commits so far. */
static inline bool cafs_read_generation(uint64_t *generation, const void *value, size_t length)
{
    if (length != CAFS_COUNTERS_LENGTH)
        return false;
    *generation = cafs_le64(value);
    return true;
}

/* -- files ----------------------------------------------------------------------------------- */

#define CAFS_PACK_MAGIC "CAFSPACK"
#define CAFS_FILE_HEADER 32
#define CAFS_STORE_ID 16 /* bytes */
#define CAFS_CODEC_RAW 0
#define CAFS_CODEC_ZSTD 1

/* -- recipes --------------------------------------------------------------------------------- */

#define CAFS_PART_CHUNK 1
#define CAFS_PART_LITERAL 2
#define CAFS_PART_HOLE 3
#define CAFS_PART_MADE 4
#define CAFS_PART_SLICE 5
#define CAFS_MADE_MAX 1048576
#define CAFS_ROW_PACKED 255
#define CAFS_ROW_PACKED_HEADER 5
#define CAFS_ROW_UNFOLDED_MAX 65536

struct cafs_part {
    uint8_t kind;
    uint64_t length;     /* bytes of the blob, above 0 */
    uint64_t chunk;      /* CAFS_PART_CHUNK, _SLICE: its number, above 0 */
    uint32_t offset;     /* CAFS_PART_SLICE: where in the chunk it begins */
    const uint8_t *data; /* CAFS_PART_LITERAL: the bytes; _MADE: the 36 bytes behind the length */
};

/* How the bytes of a CAFS_PART_MADE come about. */
struct cafs_made {
    uint64_t check; /* XXH3 of the part's bytes */
    uint16_t engine;
    uint16_t params;
    uint64_t start; /* the engine's input in the inner blob */
    uint64_t raw_length;
    uint64_t position; /* in the engine's output */
};

static inline void cafs_read_made(struct cafs_made *made, const uint8_t data[36])
{
    made->check = cafs_le64(data);
    made->engine = (uint16_t)cafs_le(data + 8, 2);
    made->params = (uint16_t)cafs_le(data + 10, 2);
    made->start = cafs_le64(data + 12);
    made->raw_length = cafs_le64(data + 20);
    made->position = cafs_le64(data + 28);
}

/* Whether *first* + *second* is an offset that a file can have. */
static inline bool cafs_fits_a_file(uint64_t first, uint64_t second)
{
    const uint64_t most = (UINT64_C(1) << 63) - 1;
    return first <= most && second <= most - first;
}

/* Whether a row has to be unfolded first; then to how many bytes, and where its zstd frame lies. */
static inline bool cafs_row_is_packed(const uint8_t *row, size_t length)
{
    return length > 0 && row[0] == CAFS_ROW_PACKED;
}

static inline bool cafs_read_packed_row(const uint8_t *row, size_t length, size_t *unfolded,
                                        const uint8_t **frame, size_t *frame_length)
{
    if (length <= CAFS_ROW_PACKED_HEADER || row[0] != CAFS_ROW_PACKED)
        return false;
    const uint32_t plain = cafs_le32(row + 1);
    if (plain == 0 || plain > CAFS_ROW_UNFOLDED_MAX)
        return false;
    *unfolded = plain;
    *frame = row + CAFS_ROW_PACKED_HEADER;
    *frame_length = length - CAFS_ROW_PACKED_HEADER;
    return true;
}

/* The part at *at of a plain row, and move behind it.  False for damage and for a kind that is not
 * known; the end of the row (*at == length) is the caller's to look for. */
static inline bool cafs_next_part(struct cafs_part *part, const uint8_t *row, size_t length, size_t *at)
{
    const size_t left = *at < length ? length - *at : 0;
    const uint8_t *byte = row + *at;
    size_t used;

    if (left == 0)
        return false;
    part->kind = byte[0];
    part->chunk = 0;
    part->offset = 0;
    part->data = NULL;
    switch (part->kind) {
    case CAFS_PART_CHUNK:
        used = 11;
        if (left < used)
            return false;
        part->length = cafs_le32(byte + 1);
        part->chunk = cafs_le48(byte + 5);
        if (part->chunk == 0)
            return false;
        break;
    case CAFS_PART_LITERAL:
        if (left < 3)
            return false;
        part->length = cafs_le(byte + 1, 2);
        used = 3 + (size_t)part->length;
        if (left < used)
            return false;
        part->data = byte + 3;
        break;
    case CAFS_PART_HOLE:
        used = 9;
        if (left < used)
            return false;
        part->length = cafs_le64(byte + 1);
        if (part->length >> 63)
            return false;
        break;
    case CAFS_PART_MADE:
        used = 41;
        if (left < used)
            return false;
        part->length = cafs_le32(byte + 1);
        part->data = byte + 5;
        struct cafs_made made;
        cafs_read_made(&made, part->data);
        if (part->length > CAFS_MADE_MAX || made.engine == 0 ||
            !cafs_fits_a_file(made.start, made.raw_length) || !cafs_fits_a_file(made.position, part->length))
            return false;
        break;
    case CAFS_PART_SLICE:
        used = 15;
        if (left < used)
            return false;
        part->length = cafs_le32(byte + 1);
        part->chunk = cafs_le48(byte + 5);
        part->offset = cafs_le32(byte + 11);
        if (part->chunk == 0 || part->length > UINT32_MAX - part->offset)
            return false;
        break;
    default:
        return false;
    }
    if (part->length == 0)
        return false;
    *at += used;
    return true;
}

/* -- the pending file ------------------------------------------------------------------------ */

#define CAFS_PENDING_MAGIC "CAFSPEND"
#define CAFS_PENDING_VERSION 1
#define CAFS_PENDING_HEADER 64
#define CAFS_PENDING_BITS_MIN 10
#define CAFS_PENDING_BITS_MAX 30

enum cafs_pending_kind {
    CAFS_PENDING_ENTRY = 1, /* parent inode, and the name's own cookie */
    CAFS_PENDING_INODE = 2, /* inode, 0 */
    CAFS_PENDING_BLOB = 3   /* blob, 0 */
};

/* A pending file as it is mapped. */
struct cafs_pending {
    uint8_t *base;
    unsigned bits; /* log2 of the bits of a table */
};

static inline size_t cafs_pending_table_bytes(unsigned bits)
{
    return (size_t)1 << (bits - 3);
}

static inline size_t cafs_pending_file_bytes(unsigned bits)
{
    return CAFS_PENDING_HEADER + 2 * cafs_pending_table_bytes(bits);
}

/* Whether *length* mapped bytes are a pending file of this version. */
static inline bool cafs_pending_open(struct cafs_pending *pending, void *base, size_t length)
{
    uint8_t *at = base;
    if (length < CAFS_PENDING_HEADER || memcmp(at, CAFS_PENDING_MAGIC, 8) != 0 ||
        cafs_le32(at + 8) != CAFS_PENDING_VERSION)
        return false;
    const uint32_t bits = cafs_le32(at + 12);
    if (bits < CAFS_PENDING_BITS_MIN || bits > CAFS_PENDING_BITS_MAX ||
        length != cafs_pending_file_bytes(bits))
        return false;
    pending->base = at;
    pending->bits = bits;
    return true;
}

static inline uint64_t cafs_pending_mix(unsigned kind, uint64_t number, uint64_t hash)
{
    uint64_t x = (number << 2 | kind) * UINT64_C(0x9e3779b97f4a7c15) ^ hash;
    x = (x ^ x >> 33) * UINT64_C(0xff51afd7ed558ccd);
    x = (x ^ x >> 33) * UINT64_C(0xc4ceb9fe1a85ec53);
    return x ^ x >> 33;
}

/* `clears`: even while nothing is being cleared.  Read before the index's transaction is begun and
 * again when everything has been read and tested: another number means to start over. */
static inline uint64_t cafs_pending_clears(const struct cafs_pending *pending)
{
    /* What was read and tested before must not be moved behind this. */
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return __atomic_load_n((const uint64_t *)(const void *)(pending->base + 16), __ATOMIC_ACQUIRE);
}

static inline uint64_t cafs_pending_pid(const struct cafs_pending *pending)
{
    return __atomic_load_n((const uint64_t *)(const void *)(pending->base + 24), __ATOMIC_RELAXED);
}

/* Whether the daemon that made the file has not ended, as far as it could say so. */
static inline bool cafs_pending_alive(const struct cafs_pending *pending)
{
    return __atomic_load_n((const uint64_t *)(const void *)(pending->base + 32), __ATOMIC_ACQUIRE) != 0;
}

/* The word of a table, 0 or 1, that has a bit; native order is little-endian, as LMDB's files are. */
static inline uint64_t *cafs_pending_word(const struct cafs_pending *pending, unsigned table, uint64_t bit)
{
    const size_t at =
        CAFS_PENDING_HEADER + table * cafs_pending_table_bytes(pending->bits) + (size_t)(bit >> 6) * 8;
    return (uint64_t *)(void *)(pending->base + at);
}

static inline uint64_t cafs_pending_bit(const struct cafs_pending *pending, unsigned kind, uint64_t number,
                                        uint64_t hash)
{
    return cafs_pending_mix(kind, number, hash) >> (64 - pending->bits);
}

/* Whether something may have changed under a key since the newest commit. */
static inline bool cafs_pending_test(const struct cafs_pending *pending, unsigned kind, uint64_t number,
                                     uint64_t hash)
{
    const uint64_t bit = cafs_pending_bit(pending, kind, number, hash);
    const uint64_t mask = UINT64_C(1) << (bit & 63);
    return ((__atomic_load_n(cafs_pending_word(pending, 0, bit), __ATOMIC_ACQUIRE) |
             __atomic_load_n(cafs_pending_word(pending, 1, bit), __ATOMIC_ACQUIRE)) &
            mask) != 0;
}

#endif
