/* `cafs_status`: the module's counters, as Prometheus reads them. */
#include "ngx_http_cafs.h"

#define LINE_MAX_BYTES 256

typedef struct {
    const char *name;
    const char *label;
    size_t offset;
} ngx_http_cafs_metric_t;

#define OUTCOME(label, field)                                                                          \
    {"cafs_nginx_requests_total", "{outcome=\"" label "\"}", offsetof(ngx_http_cafs_counters_t, field)}

static const ngx_http_cafs_metric_t ngx_http_cafs_metrics[] = {
    OUTCOME("found", found),
    OUTCOME("missing", missing),
    OUTCOME("refused", refused),
    OUTCOME("handed_over", handed_over),
    OUTCOME("unavailable", unavailable),
    {"cafs_nginx_pending_total", "", offsetof(ngx_http_cafs_counters_t, pending)},
    {"cafs_nginx_cached_total", "", offsetof(ngx_http_cafs_counters_t, cached)},
    {"cafs_nginx_damaged_total", "", offsetof(ngx_http_cafs_counters_t, damaged)},
    {"cafs_nginx_sent_bytes_total", "", offsetof(ngx_http_cafs_counters_t, bytes)},
    {"cafs_nginx_disk_waits_total", "", offsetof(ngx_http_cafs_counters_t, waits)},
};

ngx_int_t ngx_http_cafs_status_handler(ngx_http_request_t *r)
{
    const ngx_uint_t count = sizeof ngx_http_cafs_metrics / sizeof *ngx_http_cafs_metrics;
    const u_char *counters = (const u_char *)ngx_http_cafs_counters(r);
    const char *before = "";
    ngx_chain_t out;
    ngx_buf_t *b;
    ngx_int_t rc;

    if (!(r->method & (NGX_HTTP_GET | NGX_HTTP_HEAD)))
        return NGX_HTTP_NOT_ALLOWED;
    rc = ngx_http_discard_request_body(r);
    if (rc != NGX_OK)
        return rc;
    b = ngx_create_temp_buf(r->pool, count * LINE_MAX_BYTES);
    if (b == NULL)
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    for (ngx_uint_t i = 0; i < count; i++) {
        const ngx_http_cafs_metric_t *metric = &ngx_http_cafs_metrics[i];
        const ngx_atomic_t *value = (const ngx_atomic_t *)(const void *)(counters + metric->offset);
        if (ngx_strcmp(metric->name, before) != 0)
            b->last = ngx_sprintf(b->last, "# TYPE %s counter\n", metric->name);
        before = metric->name;
        b->last = ngx_sprintf(b->last, "%s%s %uA\n", metric->name, metric->label, *value);
    }
    ngx_str_set(&r->headers_out.content_type, "text/plain; version=0.0.4");
    r->headers_out.content_type_len = r->headers_out.content_type.len;
    r->headers_out.status = NGX_HTTP_OK;
    r->headers_out.content_length_n = b->last - b->pos;
    b->last_buf = r == r->main;
    b->last_in_chain = 1;
    rc = ngx_http_send_header(r);
    if (rc == NGX_ERROR || rc > NGX_OK || r->header_only)
        return rc;
    out.buf = b;
    out.next = NULL;
    return ngx_http_output_filter(r, &out);
}
