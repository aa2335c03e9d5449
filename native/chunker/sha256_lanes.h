/* SHA-256 of eight or sixteen slices side by side, for x86 processors without SHA instructions.
 *
 * One stream of SHA-256 is bound by the latency of its rounds; eight independent ones in the
 * lanes of a vector take hardly longer than one, sixteen half as long again as eight.
 */
#ifndef CAFS_SHA256_LANES_H
#define CAFS_SHA256_LANES_H

#include "sha256.h"

/* Whether the processor and its operating system can run SHA256_AVX2, SHA256_AVX512 (256-bit
 * vectors too, but with rotations and ternary logic) or SHA256_AVX512_WIDE (512-bit vectors). */
bool sha256_lanes_can(enum sha256_kernel kernel);

/* Whether the processor has instructions that make one stream as fast as eight lanes. */
bool sha256_lanes_needless(void);

/* As sha256_each, for a kernel that sha256_lanes_can. */
bool sha256_lanes_each(enum sha256_kernel kernel, const struct bytes *slices, size_t count,
                         uint8_t *out);

#endif
