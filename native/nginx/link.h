/* Links that storage-cli signs: HMAC-SHA256 over the verb, the path, the time and the lifetime.
 *
 * Pure; the comparison takes the same time wherever two signatures differ.
 */
#ifndef CAFS_LINK_H
#define CAFS_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cafs_text {
    const uint8_t *data;
    size_t length;
};

/* What a request shows: its method, the decoded path behind the location, and the arguments. */
struct cafs_link {
    struct cafs_text verb;
    struct cafs_text path;
    struct cafs_text signature; /* st: base64url without padding */
    struct cafs_text signed_at; /* ts: seconds since 1970, ten digits */
    struct cafs_text lifetime;  /* e: seconds; 0: for ever */
};

/* Whether the link was signed with this secret, not in the future, and is still good at *now*. */
bool cafs_link_is_good(const struct cafs_link *link, struct cafs_text secret, int64_t now);

#endif
