/* What is done when bytes turn out to be wrong: later requests for the blob go to the daemon, and a
 * body that stays short ends with a cut.
 *
 * The module only reads.  It is the daemon that marks a chunk as damaged, names the paths that have
 * it, and lets it heal when the same content is written again; for that it has to see the damage
 * itself, and the clients, who ask again, lead it there.
 */
#include "ngx_http_cafs.h"

/* For this long; by then the daemon has marked the chunk, or there was nothing to mark. */
#define SUSPICION_S 60

void ngx_http_cafs_suspect(ngx_http_request_t *r, uint64_t blob)
{
    ngx_http_cafs_counters_t *shared = ngx_http_cafs_counters(r);
    const ngx_atomic_uint_t place = ngx_atomic_fetch_add(&shared->next_suspect, 1) % NGX_HTTP_CAFS_SUSPECTS;

    shared->suspects[place] = (ngx_atomic_uint_t)ngx_time() << 32 | (uint32_t)blob;
}

int ngx_http_cafs_is_suspect(ngx_http_request_t *r, uint64_t blob)
{
    const ngx_http_cafs_counters_t *shared = ngx_http_cafs_counters(r);

    if (shared->next_suspect == 0)
        return 0;
    for (ngx_uint_t i = 0; i < NGX_HTTP_CAFS_SUSPECTS; i++) {
        const ngx_atomic_uint_t suspect = shared->suspects[i];
        if ((uint32_t)suspect == (uint32_t)blob && ngx_time() - (time_t)(suspect >> 32) < SUSPICION_S)
            return 1;
    }
    return 0;
}

void ngx_http_cafs_cut(ngx_http_request_t *r)
{
    static const struct linger reset = {1, 0};

    if (r->stream == NULL) {
        (void)setsockopt(r->connection->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        /* No close-notify. */
        r->connection->error = 1;
    }
    r->keepalive = 0;
}

static void ngx_http_cafs_check_length(void *data)
{
    ngx_http_request_t *r = data;
    const off_t length = r->headers_out.content_length_n;

    if (r->header_sent && !r->header_only && length > 0 &&
        r->connection->sent - (off_t)r->header_size < length)
        ngx_http_cafs_cut(r);
}

/* nginx ends an answer that its upstream left short in good order. */
ngx_int_t ngx_http_cafs_watch_length(ngx_http_request_t *r)
{
    ngx_http_cleanup_t *cleanup = ngx_http_cleanup_add(r, 0);

    if (cleanup == NULL)
        return NGX_ERROR;
    cleanup->handler = ngx_http_cafs_check_length;
    cleanup->data = r;
    return NGX_OK;
}
