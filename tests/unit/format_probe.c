/* Functions of cafs_format.h under names that a test can call. */
#include <cafs_format.h>

#define CALL __attribute__((visibility("default")))

CALL uint32_t probe_check(unsigned database, const void *key, size_t key_length, const void *value,
                          size_t length);
CALL int probe_unseal(unsigned database, const void *key, size_t key_length, const void *value,
                      size_t *length);
CALL const char *probe_database_name(unsigned database);
CALL int probe_is_checked(unsigned database);
CALL uint64_t probe_name_cookie(const void *name, size_t length);
CALL uint64_t probe_next_cookie(uint64_t cookie);
CALL void probe_keys(uint8_t *at, uint64_t number, uint64_t second, const uint8_t *digest);
CALL int probe_entry(struct cafs_entry *entry, const void *value, size_t length);
CALL int probe_inode(struct cafs_inode *inode, const void *value, size_t length);
CALL int probe_blob(struct cafs_blob *blob, const void *value, size_t length);
CALL int probe_chunk(struct cafs_chunk *chunk, const void *value, size_t length);
CALL int probe_pack(struct cafs_pack *pack, const void *value, size_t length);
CALL int probe_generation(uint64_t *generation, const void *value, size_t length);
CALL int probe_part(struct cafs_part *part, const uint8_t *row, size_t length, size_t *at);
CALL void probe_made(const uint8_t *data, uint64_t *fields);
CALL int probe_packed(const uint8_t *row, size_t length, size_t *unfolded, size_t *at, size_t *frame);
CALL int probe_pending(void *base, size_t length, unsigned kind, uint64_t number, uint64_t place,
                       uint64_t *header);
CALL uint64_t probe_mix(unsigned kind, uint64_t number, uint64_t place);

uint32_t probe_check(unsigned database, const void *key, size_t key_length, const void *value,
                     size_t length)
{
    return cafs_check(database, key, key_length, value, length);
}

int probe_unseal(unsigned database, const void *key, size_t key_length, const void *value, size_t *length)
{
    return cafs_unseal(database, key, key_length, value, length);
}

const char *probe_database_name(unsigned database)
{
    return cafs_database_name(database);
}

int probe_is_checked(unsigned database)
{
    return cafs_database_is_checked(database);
}

uint64_t probe_name_cookie(const void *name, size_t length)
{
    return cafs_name_cookie(name, length);
}

uint64_t probe_next_cookie(uint64_t cookie)
{
    return cafs_next_cookie(cookie);
}

/* All kinds of keys, one behind the other. */
void probe_keys(uint8_t *at, uint64_t number, uint64_t second, const uint8_t *digest)
{
    cafs_number_key(at, number);
    at += CAFS_NUMBER_KEY;
    cafs_entry_key(at, number, second);
    at += CAFS_ENTRY_KEY;
    cafs_recipe_key(at, number, second);
    at += CAFS_RECIPE_KEY;
    cafs_digest_key(at, digest, number);
    at += CAFS_DIGEST_KEY;
    cafs_pack_key(at, (uint32_t)(second & 0xffffffffU));
}

int probe_entry(struct cafs_entry *entry, const void *value, size_t length)
{
    return cafs_read_entry(entry, value, length);
}

int probe_inode(struct cafs_inode *inode, const void *value, size_t length)
{
    return cafs_read_inode(inode, value, length);
}

int probe_blob(struct cafs_blob *blob, const void *value, size_t length)
{
    return cafs_read_blob(blob, value, length);
}

int probe_chunk(struct cafs_chunk *chunk, const void *value, size_t length)
{
    return cafs_read_chunk(chunk, value, length);
}

int probe_pack(struct cafs_pack *pack, const void *value, size_t length)
{
    return cafs_read_pack(pack, value, length);
}

int probe_generation(uint64_t *generation, const void *value, size_t length)
{
    return cafs_read_generation(generation, value, length);
}

int probe_part(struct cafs_part *part, const uint8_t *row, size_t length, size_t *at)
{
    return cafs_next_part(part, row, length, at);
}

void probe_made(const uint8_t *data, uint64_t *fields)
{
    struct cafs_made made;

    cafs_read_made(&made, data);
    fields[0] = made.check;
    fields[1] = made.engine;
    fields[2] = made.params;
    fields[3] = made.start;
    fields[4] = made.raw_length;
    fields[5] = made.position;
}

int probe_packed(const uint8_t *row, size_t length, size_t *unfolded, size_t *at, size_t *frame)
{
    const uint8_t *begin;

    if (!cafs_row_is_packed(row, length))
        return -1;
    if (!cafs_read_packed_row(row, length, unfolded, &begin, frame))
        return 0;
    *at = (size_t)(begin - row);
    return 1;
}

/* -1: no pending file; else whether the record is marked. */
int probe_pending(void *base, size_t length, unsigned kind, uint64_t number, uint64_t place,
                  uint64_t *header)
{
    struct cafs_pending pending;

    if (!cafs_pending_open(&pending, base, length))
        return -1;
    header[0] = cafs_pending_clears(&pending);
    header[1] = cafs_pending_pid(&pending);
    header[2] = cafs_pending_alive(&pending);
    return cafs_pending_test(&pending, kind, number, place);
}

uint64_t probe_mix(unsigned kind, uint64_t number, uint64_t place)
{
    return cafs_pending_mix(kind, number, place);
}
