/* See sha256.h. */
#include "sha256.h"

#include <openssl/evp.h>

#include "sha256_lanes.h"

/* Fetched once: EVP_sha256() would look it up anew for each digest, which costs more than
 * hashing a zip header. */
static EVP_MD *algorithm;

static bool runnable[SHA256_KERNELS];

/* The kernel for many slices; OpenSSL where one stream is as fast as eight lanes. */
static enum sha256_kernel preferred;

bool sha256_setup(void)
{
    if (algorithm == NULL)
        algorithm = EVP_MD_fetch(NULL, "SHA256", NULL);
    runnable[SHA256_AUTO] = runnable[SHA256_OPENSSL] = algorithm != NULL;
    runnable[SHA256_AVX2] = sha256_lanes_can(SHA256_AVX2);
    runnable[SHA256_AVX512] = sha256_lanes_can(SHA256_AVX512);
    runnable[SHA256_AVX512_WIDE] = sha256_lanes_can(SHA256_AVX512_WIDE);
    preferred = SHA256_OPENSSL;
    if (runnable[SHA256_AVX2] && !sha256_lanes_needless())
        preferred = runnable[SHA256_AVX512] ? SHA256_AVX512 : SHA256_AVX2;
    return algorithm != NULL;
}

bool sha256_can(enum sha256_kernel kernel)
{
    return runnable[kernel];
}

/* Whether sixteen lanes are through before eight: a step of theirs takes half as long again,
 * and neither is done before its longest slice. */
static bool fills_sixteen(size_t longest, size_t total)
{
    const size_t wide = total / 16 > longest ? total / 16 : longest;
    const size_t narrow = total / 8 > longest ? total / 8 : longest;

    return wide + wide / 2 < narrow;
}

/* A lane is slower than OpenSSL's stream: twice with AVX-512, three times with AVX2.  So they
 * lose where one slice makes up most of the bytes. */
static enum sha256_kernel choose(const struct bytes *slices, size_t count)
{
    const size_t slower = preferred == SHA256_AVX512 ? 2 : 3;
    size_t longest = 0, total = 0;

    if (preferred == SHA256_OPENSSL || count <= slower)
        return SHA256_OPENSSL;
    for (size_t i = 0; i < count; i++) {
        if (slices[i].size > longest)
            longest = slices[i].size;
        total += slices[i].size;
    }
    if (longest * slower >= total)
        return SHA256_OPENSSL;
    return preferred == SHA256_AVX512 && fills_sixteen(longest, total) ? SHA256_AVX512_WIDE
                                                                       : preferred;
}

static bool by_openssl(const struct bytes *slices, size_t count, uint8_t *out)
{
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    bool good = context != NULL;

    for (size_t i = 0; good && i < count; i++) {
        good = EVP_DigestInit_ex2(context, algorithm, NULL) == 1 &&
               EVP_DigestUpdate(context, slices[i].at, slices[i].size) == 1 &&
               EVP_DigestFinal_ex(context, out + i * SHA256_SIZE, NULL) == 1;
    }
    EVP_MD_CTX_free(context);
    return good;
}

bool sha256_each(enum sha256_kernel kernel, const struct bytes *slices, size_t count,
                   uint8_t *out)
{
    if (kernel == SHA256_AUTO)
        kernel = choose(slices, count);
    if (kernel == SHA256_OPENSSL)
        return by_openssl(slices, count, out);
    return sha256_lanes_each(kernel, slices, count, out);
}
