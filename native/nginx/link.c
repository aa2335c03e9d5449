#include "link.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <string.h>

#define MAC_BYTES 32
#define MAC_TEXT 43      /* of 32 bytes in base64 without padding */
#define NUMBER_DIGITS 18 /* below 2^63 */
#define TIME_DIGITS 10   /* from 2001 to 2286 */

/* Seconds that a signer's clock may be ahead of ours. */
#define FUTURE_MAX 86400

/* Nothing stands between the signed path, time and lifetime: ts=1700000000 and e=900 are signed as
 * well for ts=170000000090 and e=0, which is for ever, and for ts=1 and e=700000000900.  So only one
 * spelling is taken for each: then digits can be moved only through both, and the path is another
 * one and the time far off. */
static bool read_number(struct cafs_text text, int64_t *number)
{
    *number = 0;
    if (text.length == 0 || text.length > NUMBER_DIGITS || (text.data[0] == '0' && text.length > 1))
        return false;
    for (size_t i = 0; i < text.length; i++) {
        if (text.data[i] < '0' || text.data[i] > '9')
            return false;
        *number = *number * 10 + (text.data[i] - '0');
    }
    return true;
}

/* base64url without padding. */
static void write_text(uint8_t text[MAC_TEXT], const uint8_t mac[MAC_BYTES])
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    size_t made = 0;
    uint32_t bits = 0;
    unsigned held = 0;

    for (size_t i = 0; i < MAC_BYTES; i++) {
        bits = bits << 8 | mac[i];
        for (held += 8; held >= 6; held -= 6)
            text[made++] = (uint8_t)digits[bits >> (held - 6) & 63];
    }
    text[made] = (uint8_t)digits[bits << (6 - held) & 63];
}

bool cafs_link_is_good(const struct cafs_link *link, struct cafs_text secret, int64_t now)
{
    const struct cafs_text message[] = {link->verb, link->path, link->signed_at, link->lifetime};
    uint8_t mac[EVP_MAX_MD_SIZE];
    uint8_t expected[MAC_TEXT];
    uint8_t joined[8192];
    unsigned mac_length = 0;
    size_t length = 0;
    int64_t signed_at;
    int64_t lifetime;

    /* An empty secret would let everybody sign. */
    if (secret.length == 0 || secret.length > INT32_MAX || link->signature.length != MAC_TEXT ||
        link->signed_at.length != TIME_DIGITS || !read_number(link->signed_at, &signed_at) ||
        !read_number(link->lifetime, &lifetime))
        return false;
    for (size_t i = 0; i < sizeof message / sizeof *message; i++) {
        if (message[i].length > sizeof joined - length)
            return false;
        if (message[i].length > 0)
            memcpy(joined + length, message[i].data, message[i].length);
        length += message[i].length;
    }
    if (HMAC(EVP_sha256(), secret.data, (int)secret.length, joined, length, mac, &mac_length) == NULL ||
        mac_length != MAC_BYTES)
        return false;
    write_text(expected, mac);
    if (CRYPTO_memcmp(expected, link->signature.data, MAC_TEXT) != 0)
        return false;
    if (signed_at - now > FUTURE_MAX)
        return false;
    return lifetime == 0 || now - signed_at <= lifetime;
}
