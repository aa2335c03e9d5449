/* XXH3-64 of long buffers, by the widest instructions that the processor has.
 *
 * cafs_format.h compiles XXH3 for any processor of the architecture, which is right for keys and
 * records; of what it takes to send a verified chunk, hashing it so would be a third.
 */
#ifndef CAFS_HASH_H
#define CAFS_HASH_H

#include <stddef.h>
#include <stdint.h>

uint64_t cafs_hash(const void *bytes, size_t length);

#endif
