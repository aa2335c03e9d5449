/* From a request to its answer's header: what nginx's static module does, from the index.
 *
 * Whatever the index cannot say for sure goes to the daemon, through the location that
 * `cafs_fallback` names.
 */
#include "ngx_http_cafs.h"

#include "link.h"

/* How often a view may turn out not to count before the daemon is asked. */
#define ROUNDS 8

void ngx_http_cafs_log_fault(ngx_http_request_t *r, const struct cafs_fault *fault)
{
    ngx_http_cafs_count(r, damaged, 1);
    ngx_log_error(NGX_LOG_ERR, r->connection->log, 0, "cafs: the index is damaged: %s %uL: %s; \"%V\" cannot be served",
                  cafs_database_name(fault->database), fault->number, fault->what, &r->unparsed_uri);
}

ngx_int_t ngx_http_cafs_hand_over(ngx_http_request_t *r, ngx_http_cafs_loc_conf_t *conf)
{
    if (conf->fallback.len == 0) {
        ngx_http_cafs_count(r, unavailable, 1);
        return NGX_HTTP_SERVICE_UNAVAILABLE;
    }
    ngx_http_cafs_count(r, handed_over, 1);
    if (ngx_http_cafs_watch_length(r) != NGX_OK)
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    return ngx_http_named_location(r, &conf->fallback);
}

/* -- signed links ---------------------------------------------------------------------------- */

static struct cafs_text ngx_http_cafs_arg(ngx_http_request_t *r, const char *name)
{
    ngx_str_t value;

    if (ngx_http_arg(r, (u_char *)(uintptr_t)name, ngx_strlen(name), &value) != NGX_OK)
        return (struct cafs_text){NULL, 0};
    return (struct cafs_text){value.data, value.len};
}

static int ngx_http_cafs_is_signed(ngx_http_request_t *r, const ngx_http_cafs_loc_conf_t *conf)
{
    const struct cafs_text secret = {conf->secret.data, conf->secret.len};
    const struct cafs_link link = {
        {r->method_name.data, r->method_name.len},
        {r->uri.data + conf->prefix, r->uri.len - conf->prefix},
        ngx_http_cafs_arg(r, "st"),
        ngx_http_cafs_arg(r, "ts"),
        ngx_http_cafs_arg(r, "e"),
    };
    return cafs_link_is_good(&link, secret, ngx_time());
}

/* -- looking up ------------------------------------------------------------------------------ */

/* What is looked for, and what was found. */
typedef struct {
    ngx_http_cafs_site_t *site;
    const struct cafs_caller *caller;
    const u_char *path;
    size_t length;
    struct cafs_recipe *recipe;
    struct cafs_node node;
    struct cafs_cached cached;
    int is_wanted;     /* the recipe was asked for */
    int may_be_cached; /* it is none of packs: the blob was taken apart, as *cached* says */
} ngx_http_cafs_question_t;

/* Whether a list of entity tags has this one, as nginx's own filter reads it. */
static int ngx_http_cafs_is_listed(const ngx_str_t *list, const u_char *etag, size_t length)
{
    const u_char *at = list->data;
    const u_char *end = at + list->len;

    while (at < end) {
        if (end - at > 2 && at[0] == 'W' && at[1] == '/')
            at += 2;
        if ((size_t)(end - at) < length)
            return 0;
        if (ngx_memcmp(at, etag, length) == 0) {
            at += length;
            while (at < end && (*at == ' ' || *at == '\t'))
                at++;
            if (at == end || *at == ',')
                return 1;
        }
        while (at < end && *at != ',')
            at++;
        while (at < end && (*at == ' ' || *at == '\t' || *at == ','))
            at++;
    }
    return 0;
}

/* Whether an answer will be 304, which needs no recipe.  nginx's own filter decides; should it want
 * the body all the same, the recipe is read then. */
static int ngx_http_cafs_is_unchanged(ngx_http_request_t *r, const struct cafs_inode *inode)
{
    const ngx_http_core_loc_conf_t *clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);
    const ngx_table_elt_t *since = r->headers_in.if_modified_since;
    const ngx_table_elt_t *match = r->headers_in.if_none_match;
    const time_t modified = ngx_http_cafs_seconds(inode->mtime_ns);
    u_char etag[sizeof "\"-\"" + NGX_OFF_T_LEN + NGX_TIME_T_LEN];
    const u_char *end;

    if (since == NULL && match == NULL)
        return 0;
    if (r != r->main || r->disable_not_modified)
        return 0;
    if (since != NULL) {
        const time_t told = ngx_parse_http_time(since->value.data, since->value.len);
        if (clcf->if_modified_since == NGX_HTTP_IMS_OFF ||
            (told != modified && (clcf->if_modified_since == NGX_HTTP_IMS_EXACT || told < modified)))
            return 0;
    }
    if (match == NULL || (match->value.len == 1 && match->value.data[0] == '*'))
        return 1;
    end = ngx_sprintf(etag, "\"%xT-%xO\"", modified, (off_t)inode->size);
    return clcf->etag && ngx_http_cafs_is_listed(&match->value, etag, (size_t)(end - etag));
}

static enum cafs_outcome ngx_http_cafs_ask_once(ngx_http_request_t *r, ngx_http_cafs_question_t *question,
                                                struct cafs_view *view)
{
    const struct cafs_inode *inode = &question->node.inode;
    enum cafs_outcome outcome =
        cafs_lookup(view, question->caller, question->path, question->length, &question->node);

    question->is_wanted = question->may_be_cached = 0;
    if (outcome == CAFS_OK && r->method == NGX_HTTP_GET && S_ISREG(inode->mode) && inode->size > 0 &&
        !ngx_http_cafs_is_unchanged(r, inode)) {
        question->is_wanted = 1;
        outcome = cafs_recipe_read(view, inode->blob, inode->size, question->recipe);
        question->may_be_cached = outcome == CAFS_FOREIGN &&
                                  cafs_cached_find(view, inode->blob, inode->size, &question->cached);
    }
    return outcome;
}

/* NGX_OK: answered; NGX_DECLINED: only the daemon can; else a status. */
static ngx_int_t ngx_http_cafs_ask(ngx_http_request_t *r, ngx_http_cafs_question_t *question)
{
    struct cafs_view view;
    enum cafs_outcome outcome;

    for (ngx_uint_t round = 0; round < ROUNDS; round++) {
        const ngx_int_t rc = ngx_http_cafs_begin(r, question->site, &view);
        if (rc != NGX_OK)
            return rc;
        outcome = ngx_http_cafs_ask_once(r, question, &view);
        if (cafs_store_end(&question->site->store, &view)) {
            switch (outcome) {
            case CAFS_OK:
                /* Without a daemon there is nobody to lead a client to. */
                if (question->is_wanted && view.pending != NULL &&
                    ngx_http_cafs_is_suspect(r, question->node.inode.blob))
                    return NGX_DECLINED;
                return NGX_OK;
            case CAFS_NOT_FOUND:
                ngx_http_cafs_count(r, missing, 1);
                return NGX_HTTP_NOT_FOUND;
            case CAFS_FORBIDDEN:
                ngx_http_cafs_count(r, refused, 1);
                return NGX_HTTP_FORBIDDEN;
            case CAFS_FOREIGN:
                if (view.pending != NULL && question->may_be_cached &&
                    ngx_http_cafs_is_suspect(r, question->node.inode.blob))
                    question->may_be_cached = 0;
                return question->may_be_cached ? NGX_OK : NGX_DECLINED;
            case CAFS_DAMAGED:
                ngx_http_cafs_log_fault(r, &view.fault);
                return NGX_HTTP_INTERNAL_SERVER_ERROR;
            case CAFS_NO_MEMORY:
                return NGX_HTTP_INTERNAL_SERVER_ERROR;
            case CAFS_PENDING:
                if (cafs_store_is_abandoned(&question->site->store))
                    break;
                ngx_http_cafs_count(r, pending, 1);
                return NGX_DECLINED;
            }
        }
        cafs_recipe_free(question->recipe);
    }
    return NGX_DECLINED;
}

ngx_int_t ngx_http_cafs_read_recipe(ngx_http_request_t *r, ngx_http_cafs_ctx_t *ctx)
{
    const uint64_t size = ctx->recipe.size;
    struct cafs_view view;

    for (ngx_uint_t round = 0; round < ROUNDS; round++) {
        if (ngx_http_cafs_begin(r, ctx->site, &view) != NGX_OK)
            return NGX_ERROR;
        const enum cafs_outcome outcome = cafs_recipe_read(&view, ctx->blob, size, &ctx->recipe);
        if (cafs_store_end(&ctx->site->store, &view) && outcome != CAFS_PENDING) {
            if (outcome == CAFS_DAMAGED)
                ngx_http_cafs_log_fault(r, &view.fault);
            ctx->has_recipe = 1;
            if (outcome == CAFS_OK)
                cafs_packs_hold(&ctx->packs, &ctx->recipe);
            return outcome == CAFS_OK ? NGX_OK : NGX_ERROR;
        }
        cafs_recipe_free(&ctx->recipe);
        if (!cafs_store_is_abandoned(&ctx->site->store))
            break;
    }
    return NGX_ERROR;
}

/* -- the handler ----------------------------------------------------------------------------- */

ngx_int_t ngx_http_cafs_handler(ngx_http_request_t *r)
{
    ngx_http_cafs_loc_conf_t *conf = ngx_http_get_module_loc_conf(r, ngx_http_cafs_module);
    ngx_http_cafs_main_conf_t *mcf = ngx_http_get_module_main_conf(r, ngx_http_cafs_module);
    ngx_http_cafs_question_t question;
    struct cafs_recipe recipe;
    ngx_int_t rc;

    if (conf->secret.len && (r->uri.len < conf->prefix || !ngx_http_cafs_is_signed(r, conf)))
        return NGX_HTTP_FORBIDDEN;
    if (!(r->method & (NGX_HTTP_GET | NGX_HTTP_HEAD)))
        return conf->fallback.len ? ngx_http_cafs_hand_over(r, conf) : NGX_HTTP_NOT_ALLOWED;
    if (r->uri.len < conf->prefix)
        return NGX_HTTP_NOT_FOUND;

    ngx_memzero(&recipe, sizeof recipe);
    question.site = conf->site;
    question.caller = &mcf->caller;
    question.path = r->uri.data + conf->prefix;
    question.length = r->uri.len - conf->prefix;
    question.recipe = &recipe;
    rc = ngx_http_cafs_ask(r, &question);
    if (rc == NGX_OK && !question.may_be_cached)
        return ngx_http_cafs_answer(r, conf, &question.node, &recipe, question.is_wanted);
    cafs_recipe_free(&recipe);
    if (rc == NGX_OK)
        return ngx_http_cafs_cached(r, conf, &question.node, &question.cached);
    return rc == NGX_DECLINED ? ngx_http_cafs_hand_over(r, conf) : rc;
}
