/* A blob that was taken apart, and lies whole in the cache: answered from that file.
 *
 * The file becomes a recipe with one part for each of its blocks, in a pack of its own, so whatever
 * reads, verifies and sends packs does so with it.  Invariant: nothing was said to the client before
 * table and first block were found right; until then the daemon can still answer, and does.
 */
#include "ngx_http_cafs.h"

static void ngx_http_cafs_read_table(ngx_http_cafs_ctx_t *ctx, bool cached_only)
{
    ngx_http_cafs_cached_t *cached = ctx->cached;

    ctx->filled = cafs_cached_read(cached->fd, &cached->file, cached_only, &ctx->recipe, &cached->why,
                                   &cached->error);
}

#if (NGX_THREADS)

static void ngx_http_cafs_table_thread(void *data, ngx_log_t *log)
{
    (void)log;
    ngx_http_cafs_read_table(*(ngx_http_cafs_ctx_t **)data, false);
}

#endif

void ngx_http_cafs_log_block(ngx_http_request_t *r, ngx_http_cafs_ctx_t *ctx)
{
    const int is_broken = ctx->filled != CAFS_SYSTEM;
    const ngx_err_t error = is_broken ? 0 : ctx->window.error;
    const uint64_t start = ctx->recipe.extents[ctx->window.bad].start;

    if (!r->header_sent) {
        ngx_log_error(NGX_LOG_WARN, r->connection->log, error,
                      "cafs: the cached file of blob %uL cannot be used from byte %uL on: the daemon answers",
                      ctx->blob, start);
        return;
    }
    if (is_broken) {
        ngx_http_cafs_count(r, damaged, 1);
        ngx_http_cafs_suspect(r, ctx->blob);
    }
    ngx_log_error(NGX_LOG_ERR, r->connection->log, error,
                  "cafs: the cached file of blob %uL is damaged or cannot be read from byte %uL on; "
                  "\"%V\" cannot be served",
                  ctx->blob, start, &r->unparsed_uri);
}

/* As ngx_http_cafs_load: have the recipe. */
static ngx_int_t ngx_http_cafs_load_table(ngx_http_request_t *r, ngx_http_cafs_ctx_t *ctx)
{
    const ngx_http_cafs_cached_t *cached = ctx->cached;

    if (ctx->has_recipe)
        return NGX_OK;
    if (ctx->is_posted)
        ctx->is_posted = 0;
    else
        ngx_http_cafs_read_table(ctx, true);
    if (ctx->filled == CAFS_NOT_CACHED) {
#if (NGX_THREADS)
        return ngx_http_cafs_post(r, ctx, ngx_http_cafs_table_thread);
#else
        ngx_http_cafs_read_table(ctx, false);
#endif
    }
    if (ctx->filled == CAFS_FILLED) {
        ctx->has_recipe = 1;
        return NGX_OK;
    }
    ngx_log_error(NGX_LOG_WARN, r->connection->log, ctx->filled == CAFS_SYSTEM ? cached->error : 0,
                  "cafs: the cached file of blob %uL cannot be used: %s: the daemon answers", ctx->blob,
                  ctx->filled == CAFS_SYSTEM ? "it cannot be read" : cached->why);
    return NGX_ERROR;
}

/* As ngx_http_cafs_load: have the recipe and the first bytes. */
static ngx_int_t ngx_http_cafs_load_first(ngx_http_request_t *r, ngx_http_cafs_ctx_t *ctx)
{
    const ngx_int_t rc = ngx_http_cafs_load_table(r, ctx);

    return rc == NGX_OK ? ngx_http_cafs_load(r, ctx, ctx->first, ctx->recipe.size) : rc;
}

/* With what that has returned. */
static ngx_int_t ngx_http_cafs_answer_or_hand_over(ngx_http_request_t *r, ngx_http_cafs_ctx_t *ctx, ngx_int_t rc)
{
    if (rc == NGX_OK) {
        ngx_http_cafs_count(r, cached, 1);
        return ngx_http_cafs_answer(r, ctx->conf, &ctx->cached->node, &ctx->recipe, 1);
    }
    ngx_http_cafs_release(ctx);
    ngx_http_set_ctx(r, NULL, ngx_http_cafs_module);
    return ngx_http_cafs_hand_over(r, ctx->conf);
}

static void ngx_http_cafs_go_on(ngx_http_request_t *r)
{
    ngx_http_cafs_ctx_t *ctx = ngx_http_get_module_ctx(r, ngx_http_cafs_module);
    ngx_int_t rc;

    if (r->aio)
        return;
    rc = ngx_http_cafs_load_first(r, ctx);
    if (rc != NGX_AGAIN)
        ngx_http_finalize_request(r, ngx_http_cafs_answer_or_hand_over(r, ctx, rc));
}

ngx_int_t ngx_http_cafs_cached(ngx_http_request_t *r, ngx_http_cafs_loc_conf_t *conf,
                               const struct cafs_node *node, const struct cafs_cached *file)
{
    const struct cafs_store *store = &conf->site->store;
    struct cafs_recipe none;
    ngx_http_cafs_cached_t *cached;
    ngx_http_cafs_ctx_t *ctx;
    ngx_int_t rc;
    int fd;

    fd = cafs_cached_open(store->path, file->blob);
    if (fd < 0)
        return ngx_http_cafs_hand_over(r, conf);
    ngx_memzero(&none, sizeof none);
    cached = ngx_pcalloc(r->pool, sizeof *cached);
    ctx = cached == NULL ? NULL : ngx_http_cafs_create_ctx(r, conf, &none);
    if (ctx == NULL) {
        close(fd);
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }
    cafs_packs_adopt(&ctx->packs, CAFS_CACHED_PACK, fd);
    cached->fd = fd;
    cached->node = *node;
    cached->file = *file;
    ngx_memcpy(cached->file.store_id, store->id, sizeof store->id);
    ctx->cached = cached;
    ctx->ino = node->ino;
    ctx->blob = file->blob;
    ctx->first = ngx_http_cafs_likely_start(r, (off_t)file->size);
    /* Nobody has synced it: what a power loss left of it may be anything. */
    ctx->window.verify = true;
    if (ctx->verify == NGX_HTTP_CAFS_VERIFY_OFF)
        ctx->verify = NGX_HTTP_CAFS_VERIFY_CACHED;
    rc = ngx_http_cafs_load_first(r, ctx);
    if (rc != NGX_AGAIN)
        return ngx_http_cafs_answer_or_hand_over(r, ctx, rc);
    r->main->count++;
    r->write_event_handler = ngx_http_cafs_go_on;
    return NGX_DONE;
}
