/* Bodies: the pieces of a blob that nginx wants, replaced by verified bytes.
 *
 * A body filter between nginx's range filter and its copy filter.  The handler sends one buffer that
 * says "this blob, in a file"; what arrives here are its wanted pieces, with multipart headers in
 * between.  Invariant: bytes of a window go on only after all of it was verified; if a window cannot
 * be had, the connection ends without the rest, and on TLS without a close-notify.
 */
#include "ngx_http_cafs.h"

#define WINDOW (256 << 10)     /* read, verified and sent at a time */
#define TURN (2 << 20)         /* sent before other connections have their turn */
#define AHEAD (4U << 20)       /* begun to read behind a window that was not cached */
#define STRETCH (4U << 20)     /* given to sendfile at a time */

static ngx_http_output_body_filter_pt ngx_http_cafs_next_body_filter;

/* -- the context ----------------------------------------------------------------------------- */

void ngx_http_cafs_release(ngx_http_cafs_ctx_t *ctx)
{
    cafs_recipe_free(&ctx->recipe);
    cafs_packs_close(&ctx->packs);
    cafs_window_free(&ctx->window);
    if (ctx->packs.directory >= 0)
        close(ctx->packs.directory);
    ctx->packs.directory = -1;
}

/* Runs when no thread works for the request any more. */
static void ngx_http_cafs_cleanup(void *data)
{
    ngx_http_cafs_release(data);
}

ngx_http_cafs_ctx_t *ngx_http_cafs_create_ctx(ngx_http_request_t *r, ngx_http_cafs_loc_conf_t *conf,
                                              struct cafs_recipe *recipe)
{
    ngx_pool_cleanup_t *cleanup = ngx_pool_cleanup_add(r->pool, sizeof(ngx_http_cafs_ctx_t));
    ngx_http_cafs_ctx_t *ctx;

    if (cleanup == NULL) {
        cafs_recipe_free(recipe);
        return NULL;
    }
    ctx = cleanup->data;
    ngx_memzero(ctx, sizeof *ctx);
    ctx->conf = conf;
    ctx->site = conf->site;
    ctx->recipe = *recipe;
    ctx->verify = conf->verify;
    ctx->window.verify = conf->verify != 0;
    ctx->begun = ngx_current_msec;
    /* Of its own: the store may be closed and opened anew meanwhile. */
    cafs_packs_init(&ctx->packs, fcntl(conf->site->store.packs_fd, F_DUPFD_CLOEXEC, 0));
    ctx->file.fd = NGX_INVALID_FILE;
    ctx->file.log = r->connection->log;
    ctx->file.name = r->uri;
    cleanup->handler = ngx_http_cafs_cleanup;
    ngx_http_set_ctx(r, ctx, ngx_http_cafs_module);
    return ctx;
}

/* -- having bytes ---------------------------------------------------------------------------- */

/* No damage: what nobody has any more may be given back while it is sent.  The path as the client
 * wrote it: decoded it may have line breaks in it. */
static void ngx_http_cafs_log_deleted(ngx_http_request_t *r, ngx_http_cafs_ctx_t *ctx,
                                      const struct cafs_extent *extent)
{
    ngx_log_error(NGX_LOG_ERR, r->connection->log, 0,
                  "cafs: chunk %uL of blob %uL was deleted meanwhile, and its space given back; "
                  "\"%V\" cannot be sent to its end",
                  extent->chunk, ctx->blob, &r->unparsed_uri);
}

static void ngx_http_cafs_log_chunk(ngx_http_request_t *r, ngx_http_cafs_ctx_t *ctx, enum cafs_whereabouts where)
{
    const struct cafs_extent *extent = &ctx->recipe.extents[ctx->window.bad];

    if (ctx->cached != NULL) {
        ngx_http_cafs_log_block(r, ctx);
        return;
    }
    if (ctx->filled == CAFS_SYSTEM) {
        ngx_log_error(NGX_LOG_CRIT, r->connection->log, ctx->window.error,
                      "cafs: chunk %uL of blob %uL cannot be read; \"%V\" cannot be served", extent->chunk,
                      ctx->blob, &r->unparsed_uri);
        return;
    }
    if (where == CAFS_GONE) {
        ngx_http_cafs_log_deleted(r, ctx, extent);
        return;
    }
    ngx_http_cafs_count(r, damaged, 1);
    ngx_http_cafs_suspect(r, ctx->blob);
    ngx_log_error(NGX_LOG_ERR, r->connection->log, 0,
                  "cafs: chunk %uL of blob %uL is damaged, %uD bytes at %uD of pack %08xD: %s; "
                  "\"%V\" cannot be served",
                  extent->chunk, ctx->blob, extent->stored, extent->offset, extent->pack, ctx->window.why,
                  &r->unparsed_uri);
}

/* As ngx_http_cafs_begin.  Only records of chunks will be looked at, of which none is ever pending. */
static ngx_int_t ngx_http_cafs_begin_chunks(ngx_http_request_t *r, ngx_http_cafs_ctx_t *ctx, struct cafs_view *view)
{
    const ngx_int_t rc = ngx_http_cafs_begin(r, ctx->site, view);

    /* With an index that has just been replaced the pending file is let go, and opened anew by the next. */
    return rc == NGX_DECLINED ? ngx_http_cafs_begin(r, ctx->site, view) : rc;
}

/* A chunk that is not where it was: it may have been moved since the recipe was read, or deleted. */
static enum cafs_whereabouts ngx_http_cafs_find_bad(ngx_http_request_t *r, ngx_http_cafs_ctx_t *ctx)
{
    struct cafs_extent *extent = &ctx->recipe.extents[ctx->window.bad];
    const uint64_t length = cafs_extent_end(&ctx->recipe, ctx->window.bad) - extent->start;
    struct cafs_view view;
    enum cafs_whereabouts where;

    if (ctx->cached != NULL || ctx->filled != CAFS_BAD_CHUNK ||
        ngx_http_cafs_begin_chunks(r, ctx, &view) != NGX_OK)
        return CAFS_STAYED;
    where = cafs_extent_find(&view, extent, length);
    (void)cafs_store_end(&ctx->site->store, &view);
    return where;
}

#if (NGX_THREADS)

static void ngx_http_cafs_thread(void *data, ngx_log_t *log)
{
    ngx_http_cafs_ctx_t *ctx = *(ngx_http_cafs_ctx_t **)data;

    (void)log;
    ctx->filled = cafs_window_fill(&ctx->window, &ctx->recipe, &ctx->packs, false);
    cafs_window_ahead(&ctx->window, &ctx->recipe, &ctx->packs, AHEAD);
}

static void ngx_http_cafs_thread_done(ngx_event_t *ev)
{
    ngx_http_request_t *r = ev->data;
    ngx_connection_t *c = r->connection;

    ngx_http_set_log_request(c->log, r);
    r->main->blocked--;
    r->aio = 0;
#if (nginx_version >= 1027004)
    if (r->main->terminated) {
        c->write->handler(c->write);
        return;
    }
#endif
    r->write_event_handler(r);
    ngx_http_run_posted_requests(c);
}

ngx_int_t ngx_http_cafs_post(ngx_http_request_t *r, ngx_http_cafs_ctx_t *ctx, ngx_http_cafs_work_pt work)
{
    ngx_http_cafs_main_conf_t *mcf = ngx_http_get_module_main_conf(r, ngx_http_cafs_module);

    if (ctx->task == NULL) {
        ctx->task = ngx_thread_task_alloc(r->pool, sizeof ctx);
        if (ctx->task == NULL)
            return NGX_ERROR;
        *(ngx_http_cafs_ctx_t **)ctx->task->ctx = ctx;
        ctx->task->event.data = r;
        ctx->task->event.handler = ngx_http_cafs_thread_done;
    }
    ctx->task->handler = work;
    if (ngx_thread_task_post(mcf->threads, ctx->task) != NGX_OK)
        return NGX_ERROR;
    ctx->is_posted = 1;
    r->main->blocked++;
    r->aio = 1;
    ngx_http_cafs_count(r, waits, 1);
    return NGX_AGAIN;
}

#endif

ngx_int_t ngx_http_cafs_load(ngx_http_request_t *r, ngx_http_cafs_ctx_t *ctx, uint64_t at, uint64_t end)
{
    struct cafs_window *window = &ctx->window;
    enum cafs_whereabouts where;

    if (ctx->is_posted) {
        ctx->is_posted = 0;
    } else {
        if (ctx->has_window && at >= window->start && at < window->end)
            return NGX_OK;
        ctx->has_window = 0;
        if (!cafs_window_plan(window, &ctx->recipe, at, end, WINDOW))
            return NGX_ERROR;
        ctx->filled = cafs_window_fill(window, &ctx->recipe, &ctx->packs, true);
    }
    for (;;) {
        switch (ctx->filled) {
        case CAFS_FILLED:
            ctx->has_window = 1;
            ctx->read += (size_t)(window->end - window->start);
            return NGX_OK;
        case CAFS_NOT_CACHED:
#if (NGX_THREADS)
            return ngx_http_cafs_post(r, ctx, ngx_http_cafs_thread);
#else
            break;
#endif
        case CAFS_BAD_CHUNK:
        case CAFS_SYSTEM:
            where = ngx_http_cafs_find_bad(r, ctx);
            if (where != CAFS_MOVED) {
                ngx_http_cafs_log_chunk(r, ctx, where);
                return NGX_ERROR;
            }
            break;
        }
        ctx->filled = cafs_window_fill(window, &ctx->recipe, &ctx->packs, false);
    }
}

/* -- the filter ------------------------------------------------------------------------------ */

/* A chain of one buffer, taken from those that were sent. */
static ngx_chain_t *ngx_http_cafs_link(ngx_http_request_t *r, ngx_http_cafs_ctx_t *ctx)
{
    ngx_chain_t *link = ngx_chain_get_free_buf(r->pool, &ctx->free);

    if (link != NULL) {
        ngx_memzero(link->buf, sizeof *link->buf);
        link->buf->tag = (ngx_buf_tag_t)&ngx_http_cafs_module;
    }
    return link;
}

/* Whether space that was freed since the recipe was read may soon be given back.  What lies in a file
 * of its own is not touched while that is open. */
static int ngx_http_cafs_is_old(ngx_http_cafs_ctx_t *ctx)
{
    return ctx->cached == NULL && ngx_current_msec - ctx->begun >= ctx->conf->grace / 2;
}

/* Whether what sendfile has been given, and has not sent yet, still is what it was. */
static int ngx_http_cafs_is_kept(ngx_http_request_t *r, ngx_http_cafs_ctx_t *ctx)
{
    struct cafs_view view;
    int is_kept = 1;

    if (ngx_http_cafs_begin_chunks(r, ctx, &view) != NGX_OK)
        return 0;
    for (size_t part = ctx->stretch_first; is_kept && part < ctx->stretch_last; part++) {
        struct cafs_extent extent = ctx->recipe.extents[part];
        const uint64_t length = cafs_extent_end(&ctx->recipe, part) - extent.start;
        /* In an open pack that is removed they stay; where only holes make room they may not. */
        is_kept = cafs_extent_find(&view, &extent, length) == CAFS_STAYED ||
                  cafs_packs_have(&ctx->packs, &ctx->recipe, part);
        if (!is_kept)
            ngx_http_cafs_log_deleted(r, ctx, &extent);
    }
    (void)cafs_store_end(&ctx->site->store, &view);
    return is_kept;
}

/* Chunks that are stored as they are, in one stretch of a pack: sendfile may have them, up to byte
 * *limit* of the blob. */
static ngx_int_t ngx_http_cafs_emit_stretch(ngx_http_request_t *r, ngx_http_cafs_ctx_t *ctx, ngx_buf_t *piece,
                                            uint64_t limit, ngx_buf_t *b)
{
    const uint64_t at = (uint64_t)piece->file_pos;
    const struct cafs_extent *extents = ctx->recipe.extents;
    size_t part = cafs_recipe_find(&ctx->recipe, at);
    const size_t stretch_first = part;
    const struct cafs_extent *first = &extents[part];
    uint64_t stored = first->stored;
    uint64_t end;
    int fd;

    if (first->kind != CAFS_PART_CHUNK || first->codec != CAFS_CODEC_RAW || first->damaged)
        return NGX_DECLINED;
    if (limit - at > STRETCH)
        limit = at + STRETCH;
    while (++part < ctx->recipe.count && extents[part].start < limit &&
           extents[part].kind == CAFS_PART_CHUNK && extents[part].codec == CAFS_CODEC_RAW &&
           !extents[part].damaged && extents[part].pack == first->pack &&
           extents[part].offset == first->offset + stored)
        stored += extents[part].stored;
    end = first->start + stored;
    if (end > limit)
        end = limit;
    fd = cafs_packs_open(&ctx->packs, first->pack);
    if (fd < 0)
        return NGX_DECLINED;
    ctx->stretch_first = stretch_first;
    ctx->stretch_last = part;
    ctx->pack.fd = fd;
    ctx->pack.name = r->uri;
    ctx->pack.log = r->connection->log;
    b->in_file = 1;
    b->file = &ctx->pack;
    b->file_pos = (off_t)(first->offset + (at - first->start));
    b->file_last = b->file_pos + (off_t)(end - at);
    piece->file_pos = (off_t)end;
    return NGX_OK;
}

/* Fill a buffer with the next bytes of a piece. */
static ngx_int_t ngx_http_cafs_emit(ngx_http_request_t *r, ngx_http_cafs_ctx_t *ctx, ngx_buf_t *piece,
                                    ngx_buf_t *b)
{
    const struct cafs_window *window = &ctx->window;
    const uint64_t at = (uint64_t)piece->file_pos;
    uint64_t end = (uint64_t)piece->file_last;
    ngx_int_t rc;

    if (!ctx->has_recipe && ngx_http_cafs_read_recipe(r, ctx) != NGX_OK)
        return NGX_ERROR;
    if (ctx->verify != NGX_HTTP_CAFS_VERIFY_ON && ngx_http_cafs_is_old(ctx)) {
        ctx->verify = NGX_HTTP_CAFS_VERIFY_ON;
        ctx->window.verify = true;
    }
    if (ctx->verify == NGX_HTTP_CAFS_VERIFY_OFF) {
        rc = ngx_http_cafs_emit_stretch(r, ctx, piece, end, b);
        if (rc != NGX_DECLINED)
            return rc;
    }
    rc = ngx_http_cafs_load(r, ctx, at, end);
    if (rc != NGX_OK)
        return rc;
    if (end > window->end)
        end = window->end;
    if (ctx->verify == NGX_HTTP_CAFS_VERIFY_CACHED && r->connection->sendfile) {
        rc = ngx_http_cafs_emit_stretch(r, ctx, piece, end, b);
        if (rc != NGX_DECLINED)
            return rc;
    }
    b->temporary = 1;
    b->start = window->bytes;
    b->end = window->bytes + window->space;
    b->pos = window->bytes + (at - window->start);
    b->last = window->bytes + (end - window->start);
    piece->file_pos = (off_t)end;
    return NGX_OK;
}

static ngx_int_t ngx_http_cafs_next(ngx_http_request_t *r, ngx_http_cafs_ctx_t *ctx, ngx_chain_t *out)
{
    const ngx_int_t rc = ngx_http_cafs_next_body_filter(r, out);

    ngx_chain_update_chains(r->pool, &ctx->free, &ctx->busy, &out, (ngx_buf_tag_t)&ngx_http_cafs_module);
    return rc;
}

static ngx_int_t ngx_http_cafs_body_filter(ngx_http_request_t *r, ngx_chain_t *in)
{
    ngx_http_cafs_ctx_t *ctx = ngx_http_get_module_ctx(r, ngx_http_cafs_module);
    ngx_connection_t *c = r->connection;
    ngx_int_t rc = NGX_OK;
    size_t turn = 0;

    if (ctx == NULL)
        return ngx_http_cafs_next_body_filter(r, in);
    if (in != NULL && ngx_chain_add_copy(r->pool, &ctx->in, in) != NGX_OK)
        return NGX_ERROR;
    if (r->aio)
        return NGX_AGAIN;
    if (ctx->busy != NULL && ctx->busy->buf->in_file && ngx_buf_size(ctx->busy->buf) > 0 &&
        ngx_http_cafs_is_old(ctx) && !ngx_http_cafs_is_kept(r, ctx)) {
        ngx_http_cafs_cut(r);
        return NGX_ERROR;
    }
    if (ctx->in == NULL)
        return ngx_http_cafs_next_body_filter(r, NULL);
    r->buffered |= NGX_HTTP_CAFS_BUFFERED;
    while (ctx->in != NULL) {
        ngx_chain_t *link = ctx->in;
        ngx_buf_t *piece = link->buf;
        ngx_chain_t *out;

        /* There is one window: its bytes must go first. */
        if (ctx->busy != NULL) {
            if (ngx_http_cafs_next(r, ctx, NULL) == NGX_ERROR)
                return NGX_ERROR;
            if (ctx->busy != NULL)
                return NGX_AGAIN;
        }
        if (!piece->in_file || piece->file != &ctx->file) {
            ctx->in = link->next;
            link->next = NULL;
            rc = ngx_http_cafs_next_body_filter(r, link);
        } else {
            if (turn >= TURN && r->stream == NULL) {
                ngx_post_event(c->write, &ngx_posted_next_events);
                return NGX_AGAIN;
            }
            out = ngx_http_cafs_link(r, ctx);
            if (out == NULL)
                return NGX_ERROR;
            const int inside = piece->file_pos > 0;
            ctx->read = 0;
            rc = ngx_http_cafs_emit(r, ctx, piece, out->buf);
            if (rc != NGX_OK) {
                out->next = ctx->free;
                ctx->free = out;
                if (rc == NGX_AGAIN)
                    return NGX_AGAIN;
                ngx_http_cafs_cut(r);
                return NGX_ERROR;
            }
            if (!ctx->is_noted) {
                ctx->is_noted = 1;
                cafs_store_note_read(&ctx->site->store, ctx->ino,
                                     ctx->cached == NULL ? CAFS_READS_PACKS
                                     : inside            ? CAFS_READS_CACHED_INSIDE
                                                         : CAFS_READS_CACHED);
            }
            /* What is read is work, too: a client may want a byte here and a byte there. */
            turn += ngx_max(ctx->read, (size_t)ngx_buf_size(out->buf));
            ngx_http_cafs_count(r, bytes, ngx_buf_size(out->buf));
            if (piece->file_pos == piece->file_last) {
                out->buf->last_buf = piece->last_buf;
                out->buf->last_in_chain = piece->last_in_chain;
                ctx->in = link->next;
            }
            /* Without it few bytes would be held back until more come, which wait for them. */
            out->buf->flush = !out->buf->last_buf;
            rc = ngx_http_cafs_next(r, ctx, out);
        }
        if (rc == NGX_ERROR)
            return NGX_ERROR;
    }
    r->buffered &= (unsigned)~NGX_HTTP_CAFS_BUFFERED & 0xf;
    return rc;
}

ngx_int_t ngx_http_cafs_body_init(ngx_conf_t *cf)
{
    (void)cf;
    ngx_http_cafs_next_body_filter = ngx_http_top_body_filter;
    ngx_http_top_body_filter = ngx_http_cafs_body_filter;
    return NGX_OK;
}
