/* The answer for an inode that was found: its header, as nginx's static module makes it, and its
 * body, as one buffer that stands for the whole blob.
 *
 * nginx's own filters then decide on 304, 412, 206 and 416, and cut that buffer into the wanted
 * pieces; ngx_http_cafs_body.c puts bytes in their place.
 */
#include "ngx_http_cafs.h"

#define NS 1000000000

/* As the static module: relative; the header filter makes it absolute.  Escaped where that leaves a
 * line break as it is, with which a directory's name could give headers of its own. */
static ngx_int_t ngx_http_cafs_redirect(ngx_http_request_t *r)
{
    const uintptr_t escapes = ngx_escape_uri(NULL, r->uri.data, r->uri.len, NGX_ESCAPE_URI);
    size_t length = r->uri.len + 2 * escapes + 1;
    u_char *last;
    ngx_table_elt_t *location;

    if (r->args.len)
        length += r->args.len + 1;
    ngx_http_clear_location(r);
    location = ngx_list_push(&r->headers_out.headers);
    if (location == NULL)
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    ngx_memzero(location, sizeof *location);
    location->value.data = ngx_pnalloc(r->pool, length);
    if (location->value.data == NULL)
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    last = (u_char *)ngx_escape_uri(location->value.data, r->uri.data, r->uri.len, NGX_ESCAPE_URI);
    *last++ = '/';
    if (r->args.len) {
        *last++ = '?';
        last = ngx_copy(last, r->args.data, r->args.len);
    }
    location->value.len = (size_t)(last - location->value.data);
    location->hash = 1;
    ngx_str_set(&location->key, "Location");
    r->headers_out.location = location;
    return NGX_HTTP_MOVED_PERMANENTLY;
}

uint64_t ngx_http_cafs_likely_start(ngx_http_request_t *r, off_t size)
{
    static const char unit[] = "bytes=";
    const size_t length = sizeof unit - 1;
    ngx_table_elt_t *range = r->headers_in.range;
    u_char *digits;
    u_char *end;
    off_t number;

    if (range == NULL || range->value.len <= length ||
        ngx_strncasecmp(range->value.data, (u_char *)(uintptr_t)unit, length) != 0)
        return 0;
    /* A header's value ends with a NUL. */
    digits = range->value.data + length;
    const int suffix = *digits == '-';
    digits += suffix;
    for (end = digits; *end >= '0' && *end <= '9'; end++) {
    }
    number = ngx_atoof(digits, (size_t)(end - digits));
    if (number < suffix || number >= size)
        return 0;
    return (uint64_t)(suffix ? size - number : number);
}

time_t ngx_http_cafs_seconds(int64_t ns)
{
    return (time_t)(ns / NS - (ns % NS < 0));
}

/* Header and body. */
static ngx_int_t ngx_http_cafs_respond(ngx_http_request_t *r)
{
    ngx_http_cafs_ctx_t *ctx = ngx_http_get_module_ctx(r, ngx_http_cafs_module);
    const off_t size = r->headers_out.content_length_n;
    ngx_chain_t out;
    ngx_buf_t *b;
    ngx_int_t rc;

    b = ngx_calloc_buf(r->pool);
    if (b == NULL)
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    rc = ngx_http_send_header(r);
    if (rc == NGX_ERROR || rc > NGX_OK || r->header_only)
        return rc;
    /* In a subrequest a buffer of nothing is taken for a defect. */
    if (ctx == NULL && r != r->main)
        return rc;
    if (ctx != NULL) {
        b->in_file = 1;
        b->file = &ctx->file;
        b->file_last = size;
    }
    b->last_buf = r == r->main;
    b->last_in_chain = 1;
    out.buf = b;
    out.next = NULL;
    return ngx_http_output_filter(r, &out);
}

/* The first bytes were read by a thread. */
static void ngx_http_cafs_resume(ngx_http_request_t *r)
{
    ngx_http_cafs_ctx_t *ctx = ngx_http_get_module_ctx(r, ngx_http_cafs_module);
    ngx_int_t rc;

    if (r->aio)
        return;
    rc = ngx_http_cafs_load(r, ctx, ctx->first, ctx->recipe.size);
    if (rc == NGX_AGAIN)
        return;
    ngx_http_finalize_request(r, rc == NGX_OK ? ngx_http_cafs_respond(r) : NGX_HTTP_INTERNAL_SERVER_ERROR);
}

static ngx_int_t ngx_http_cafs_answer_file(ngx_http_request_t *r, ngx_http_cafs_loc_conf_t *conf,
                                           const struct cafs_node *node, struct cafs_recipe *recipe,
                                           int has_recipe)
{
    const struct cafs_inode *inode = &node->inode;
    ngx_http_cafs_ctx_t *ctx = NULL;
    ngx_int_t rc;

    if (r->method == NGX_HTTP_GET && inode->size > 0) {
        ctx = ngx_http_get_module_ctx(r, ngx_http_cafs_module);
        if (ctx == NULL)
            ctx = ngx_http_cafs_create_ctx(r, conf, recipe);
        if (ctx == NULL)
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        ctx->ino = node->ino;
        ctx->blob = inode->blob;
        ctx->recipe.size = inode->size;
        ctx->has_recipe = has_recipe != 0;
        cafs_packs_hold(&ctx->packs, &ctx->recipe);
    }
    rc = ngx_http_discard_request_body(r);
    if (rc != NGX_OK)
        return rc;
    r->headers_out.status = NGX_HTTP_OK;
    r->headers_out.content_length_n = (off_t)inode->size;
    r->headers_out.last_modified_time = ngx_http_cafs_seconds(inode->mtime_ns);
    if (ngx_http_set_etag(r) != NGX_OK || ngx_http_set_content_type(r) != NGX_OK)
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    r->allow_ranges = 1;
    ngx_http_cafs_count(r, found, 1);
    if (ctx == NULL || !has_recipe || !conf->verify)
        return ngx_http_cafs_respond(r);

    /* With the first bytes at hand before the header is sent, a damaged chunk is an honest 500. */
    ctx->first = ngx_http_cafs_likely_start(r, (off_t)inode->size);
    rc = ngx_http_cafs_load(r, ctx, ctx->first, inode->size);
    if (rc == NGX_AGAIN) {
        r->main->count++;
        r->write_event_handler = ngx_http_cafs_resume;
        return NGX_DONE;
    }
    return rc == NGX_OK ? ngx_http_cafs_respond(r) : NGX_HTTP_INTERNAL_SERVER_ERROR;
}

ngx_int_t ngx_http_cafs_answer(ngx_http_request_t *r, ngx_http_cafs_loc_conf_t *conf,
                               const struct cafs_node *node, struct cafs_recipe *recipe, int has_recipe)
{
    if (S_ISREG(node->inode.mode))
        return ngx_http_cafs_answer_file(r, conf, node, recipe, has_recipe);
    if (!S_ISDIR(node->inode.mode)) {
        ngx_http_cafs_count(r, missing, 1);
        return NGX_HTTP_NOT_FOUND;
    }
    ngx_http_cafs_count(r, refused, 1);
    return r->uri.data[r->uri.len - 1] == '/' ? NGX_HTTP_FORBIDDEN : ngx_http_cafs_redirect(r);
}
