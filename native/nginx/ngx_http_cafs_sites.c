/* The stores of a configuration, and the beginning of a view of one.
 *
 * Invariant: one `struct cafs_store` for each directory, however many locations serve it, because a
 * process must not open an LMDB environment twice.
 */
#include "ngx_http_cafs.h"

#define SECRET_MAX 4096

static char *ngx_http_cafs_text(ngx_conf_t *cf, const ngx_str_t *from)
{
    char *text = ngx_pnalloc(cf->pool, from->len + 1);

    if (text != NULL) {
        ngx_memcpy(text, from->data, from->len);
        text[from->len] = '\0';
    }
    return text;
}

/* The directory's one name, if it is there already. */
static ngx_int_t ngx_http_cafs_resolve(ngx_conf_t *cf, ngx_str_t *path)
{
    char resolved[PATH_MAX];
    const char *text;

    if (ngx_conf_full_name(cf->cycle, path, 1) != NGX_OK)
        return NGX_ERROR;
    text = ngx_http_cafs_text(cf, path);
    if (text == NULL)
        return NGX_ERROR;
    if (realpath(text, resolved) == NULL)
        return NGX_OK;
    path->len = ngx_strlen(resolved);
    path->data = ngx_pnalloc(cf->pool, path->len);
    if (path->data == NULL)
        return NGX_ERROR;
    ngx_memcpy(path->data, resolved, path->len);
    return NGX_OK;
}

ngx_http_cafs_site_t *ngx_http_cafs_site(ngx_conf_t *cf, ngx_http_cafs_main_conf_t *mcf, ngx_str_t *path,
                                         ngx_str_t *pending)
{
    ngx_http_cafs_site_t **sites = mcf->sites.elts;
    ngx_http_cafs_site_t *site;
    const char *text;
    const char *pending_text;

    if (ngx_http_cafs_resolve(cf, path) != NGX_OK)
        return NULL;
    for (ngx_uint_t i = 0; i < mcf->sites.nelts; i++) {
        site = sites[i];
        if (site->path.len != path->len || ngx_strncmp(site->path.data, path->data, path->len) != 0)
            continue;
        if (site->pending.len == pending->len &&
            ngx_strncmp(site->pending.data, pending->data, pending->len) == 0)
            return site;
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "the store \"%V\" has two different \"cafs_pending\"", path);
        return NULL;
    }
    sites = ngx_array_push(&mcf->sites);
    site = ngx_pcalloc(cf->pool, sizeof *site);
    text = ngx_http_cafs_text(cf, path);
    pending_text = ngx_http_cafs_text(cf, pending);
    if (sites == NULL || site == NULL || text == NULL || pending_text == NULL)
        return NULL;
    *sites = site;
    site->path = *path;
    site->pending = *pending;
    if (!cafs_store_init(&site->store, text, pending_text)) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "the name of the store \"%V\" is too long", path);
        return NULL;
    }
    return site;
}

ngx_int_t ngx_http_cafs_read_secret(ngx_conf_t *cf, ngx_str_t *file, ngx_str_t *secret)
{
    ssize_t length;
    ngx_fd_t fd;

    if (ngx_conf_full_name(cf->cycle, file, 1) != NGX_OK)
        return NGX_ERROR;
    secret->data = ngx_pnalloc(cf->pool, SECRET_MAX);
    if (secret->data == NULL)
        return NGX_ERROR;
    fd = ngx_open_file(file->data, NGX_FILE_RDONLY, NGX_FILE_OPEN, 0);
    if (fd == NGX_INVALID_FILE) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno, ngx_open_file_n " \"%V\" failed", file);
        return NGX_ERROR;
    }
    length = ngx_read_fd(fd, secret->data, SECRET_MAX);
    ngx_close_file(fd);
    while (length > 0 && (secret->data[length - 1] == LF || secret->data[length - 1] == CR))
        length--;
    if (length <= 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "there is no secret in \"%V\"", file);
        return NGX_ERROR;
    }
    secret->len = (size_t)length;
    return NGX_OK;
}

ngx_int_t ngx_http_cafs_begin(ngx_http_request_t *r, ngx_http_cafs_site_t *site, struct cafs_view *view)
{
    switch (cafs_store_begin(&site->store, ngx_current_msec, view)) {
    case CAFS_READY:
        return NGX_OK;
    case CAFS_DAEMON_ONLY:
        return NGX_DECLINED;
    case CAFS_JUST_FAILED:
        /* Once, until it can be opened again. */
        ngx_log_error(NGX_LOG_ERR, r->connection->log, 0, "cafs: the store \"%V\" cannot be opened: %s",
                      &site->path, site->store.index.error);
        break;
    case CAFS_UNAVAILABLE:
        break;
    }
    ngx_http_cafs_count(r, unavailable, 1);
    return NGX_HTTP_SERVICE_UNAVAILABLE;
}
