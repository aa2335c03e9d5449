/* Directives, and the life of the module: configuration, workers, counters.
 *
 * Nothing of a store is opened before the fork: LMDB forbids it, and a store that is not there yet
 * must not keep nginx from starting.
 */
#include "ngx_http_cafs.h"

static char *ngx_http_cafs_store_slot(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
static char *ngx_http_cafs_fallback_slot(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
static char *ngx_http_cafs_status_slot(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);

static ngx_conf_enum_t ngx_http_cafs_verify[] = {
    {ngx_string("off"), NGX_HTTP_CAFS_VERIFY_OFF},
    {ngx_string("on"), NGX_HTTP_CAFS_VERIFY_ON},
    {ngx_string("cached"), NGX_HTTP_CAFS_VERIFY_CACHED},
    {ngx_null_string, 0},
};

static ngx_command_t ngx_http_cafs_commands[] = {
    {ngx_string("cafs"), NGX_HTTP_LOC_CONF | NGX_CONF_TAKE1, ngx_http_cafs_store_slot, NGX_HTTP_LOC_CONF_OFFSET, 0,
     NULL},
    {ngx_string("cafs_fallback"), NGX_HTTP_MAIN_CONF | NGX_HTTP_SRV_CONF | NGX_HTTP_LOC_CONF | NGX_CONF_TAKE1,
     ngx_http_cafs_fallback_slot, NGX_HTTP_LOC_CONF_OFFSET, 0, NULL},
    {ngx_string("cafs_pending"), NGX_HTTP_MAIN_CONF | NGX_HTTP_SRV_CONF | NGX_HTTP_LOC_CONF | NGX_CONF_TAKE1,
     ngx_conf_set_str_slot, NGX_HTTP_LOC_CONF_OFFSET, offsetof(ngx_http_cafs_loc_conf_t, pending), NULL},
    {ngx_string("cafs_verify"), NGX_HTTP_MAIN_CONF | NGX_HTTP_SRV_CONF | NGX_HTTP_LOC_CONF | NGX_CONF_TAKE1,
     ngx_conf_set_enum_slot, NGX_HTTP_LOC_CONF_OFFSET, offsetof(ngx_http_cafs_loc_conf_t, verify),
     ngx_http_cafs_verify},
    {ngx_string("cafs_grace"), NGX_HTTP_MAIN_CONF | NGX_HTTP_SRV_CONF | NGX_HTTP_LOC_CONF | NGX_CONF_TAKE1,
     ngx_conf_set_msec_slot, NGX_HTTP_LOC_CONF_OFFSET, offsetof(ngx_http_cafs_loc_conf_t, grace), NULL},
    {ngx_string("cafs_signed_secret_file"), NGX_HTTP_LOC_CONF | NGX_CONF_TAKE1, ngx_conf_set_str_slot,
     NGX_HTTP_LOC_CONF_OFFSET, offsetof(ngx_http_cafs_loc_conf_t, secret_file), NULL},
    {ngx_string("cafs_status"), NGX_HTTP_LOC_CONF | NGX_CONF_NOARGS, ngx_http_cafs_status_slot,
     NGX_HTTP_LOC_CONF_OFFSET, 0, NULL},
    ngx_null_command,
};

static void *ngx_http_cafs_create_main_conf(ngx_conf_t *cf)
{
    ngx_http_cafs_main_conf_t *mcf = ngx_pcalloc(cf->pool, sizeof *mcf);

    if (mcf == NULL || ngx_array_init(&mcf->sites, cf->pool, 2, sizeof(ngx_http_cafs_site_t *)) != NGX_OK)
        return NULL;
    return mcf;
}

static void *ngx_http_cafs_create_loc_conf(ngx_conf_t *cf)
{
    ngx_http_cafs_loc_conf_t *conf = ngx_pcalloc(cf->pool, sizeof *conf);

    if (conf != NULL) {
        conf->verify = NGX_CONF_UNSET_UINT;
        conf->grace = NGX_CONF_UNSET_MSEC;
    }
    return conf;
}

static char *ngx_http_cafs_merge_loc_conf(ngx_conf_t *cf, void *parent, void *child)
{
    ngx_http_cafs_loc_conf_t *above = parent;
    ngx_http_cafs_loc_conf_t *conf = child;
    ngx_http_cafs_main_conf_t *mcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_cafs_module);
    ngx_http_core_loc_conf_t *clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    ngx_conf_merge_str_value(conf->fallback, above->fallback, "");
    ngx_conf_merge_str_value(conf->pending, above->pending, "");
    ngx_conf_merge_uint_value(conf->verify, above->verify, NGX_HTTP_CAFS_VERIFY_ON);
    ngx_conf_merge_msec_value(conf->grace, above->grace, 60000);
    if (conf->store.len == 0) {
        /* What `if` and `limit_except` make is a part of the location around it. */
        if (above->site != NULL && (clcf->noname || clcf->lmt_excpt) && clcf->handler == NULL) {
            conf->site = above->site;
            conf->prefix = above->prefix;
            conf->secret = above->secret;
            clcf->handler = ngx_http_cafs_handler;
        }
        return NGX_CONF_OK;
    }
    conf->site = ngx_http_cafs_site(cf, mcf, &conf->store, &conf->pending);
    if (conf->site == NULL)
        return NGX_CONF_ERROR;
    if (conf->secret_file.len && ngx_http_cafs_read_secret(cf, &conf->secret_file, &conf->secret) != NGX_OK)
        return NGX_CONF_ERROR;
#if (NGX_THREADS)
    if (mcf->threads == NULL && (mcf->threads = ngx_thread_pool_add(cf, NULL)) == NULL)
        return NGX_CONF_ERROR;
#endif
    return NGX_CONF_OK;
}

static char *ngx_http_cafs_store_slot(ngx_conf_t *cf, ngx_command_t *cmd, void *data)
{
    ngx_http_cafs_loc_conf_t *conf = data;
    ngx_http_core_loc_conf_t *clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);
    ngx_str_t *value = cf->args->elts;

    (void)cmd;
    if (conf->store.len)
        return "is duplicate";
#if (NGX_PCRE)
    if (clcf->regex != NULL)
        return "does not work in a location given by a regular expression";
#endif
    if (clcf->named || clcf->noname || clcf->name.len == 0)
        return "must be in a location with a prefix";
    conf->store = value[1];
    conf->prefix = clcf->name.len;
    clcf->handler = ngx_http_cafs_handler;
    return NGX_CONF_OK;
}

static char *ngx_http_cafs_fallback_slot(ngx_conf_t *cf, ngx_command_t *cmd, void *data)
{
    ngx_http_cafs_loc_conf_t *conf = data;
    ngx_str_t *value = cf->args->elts;

    (void)cmd;
    if (conf->fallback.len)
        return "is duplicate";
    if (value[1].data[0] != '@')
        return "must name a location that begins with \"@\"";
    conf->fallback = value[1];
    return NGX_CONF_OK;
}

static char *ngx_http_cafs_status_slot(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_core_loc_conf_t *clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    (void)cmd;
    (void)conf;
    clcf->handler = ngx_http_cafs_status_handler;
    return NGX_CONF_OK;
}

/* -- counters -------------------------------------------------------------------------------- */

static ngx_int_t ngx_http_cafs_init_zone(ngx_shm_zone_t *zone, void *old)
{
    ngx_slab_pool_t *pool = (ngx_slab_pool_t *)zone->shm.addr;

    /* A reload goes on counting. */
    if (old != NULL) {
        zone->data = old;
        return NGX_OK;
    }
    zone->data = zone->shm.exists ? pool->data : ngx_slab_calloc(pool, sizeof(ngx_http_cafs_counters_t));
    pool->data = zone->data;
    return zone->data == NULL ? NGX_ERROR : NGX_OK;
}

ngx_http_cafs_counters_t *ngx_http_cafs_counters(ngx_http_request_t *r)
{
    ngx_http_cafs_main_conf_t *mcf = ngx_http_get_module_main_conf(r, ngx_http_cafs_module);
    return mcf->zone->data;
}

static ngx_int_t ngx_http_cafs_postconfiguration(ngx_conf_t *cf)
{
    static ngx_str_t name = ngx_string("cafs");
    ngx_http_cafs_main_conf_t *mcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_cafs_module);

    mcf->zone = ngx_shared_memory_add(cf, &name, 8 * ngx_pagesize, &ngx_http_cafs_module);
    if (mcf->zone == NULL)
        return NGX_ERROR;
    mcf->zone->init = ngx_http_cafs_init_zone;
    return ngx_http_cafs_body_init(cf);
}

/* -- workers --------------------------------------------------------------------------------- */

/* Permissions count as for this worker: its user and its groups do not change any more. */
static ngx_int_t ngx_http_cafs_init_process(ngx_cycle_t *cycle)
{
    ngx_http_cafs_main_conf_t *mcf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_cafs_module);
    gid_t *groups;
    int count;

    if (mcf == NULL)
        return NGX_OK;
    count = getgroups(0, NULL);
    if (count < 0)
        return NGX_ERROR;
    groups = ngx_palloc(cycle->pool, ((size_t)count + 1) * sizeof *groups);
    if (groups == NULL)
        return NGX_ERROR;
    count = getgroups(count, groups);
    mcf->caller.uid = geteuid();
    mcf->caller.gid = getegid();
    mcf->caller.groups = groups;
    mcf->caller.group_count = count < 0 ? 0 : (size_t)count;
    return NGX_OK;
}

static void ngx_http_cafs_exit_process(ngx_cycle_t *cycle)
{
    ngx_http_cafs_main_conf_t *mcf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_cafs_module);

    if (mcf == NULL)
        return;
    ngx_http_cafs_site_t **sites = mcf->sites.elts;
    for (ngx_uint_t i = 0; i < mcf->sites.nelts; i++)
        cafs_store_close(&sites[i]->store);
}

static ngx_http_module_t ngx_http_cafs_module_ctx = {
    NULL,
    ngx_http_cafs_postconfiguration,
    ngx_http_cafs_create_main_conf,
    NULL,
    NULL,
    NULL,
    ngx_http_cafs_create_loc_conf,
    ngx_http_cafs_merge_loc_conf,
};

ngx_module_t ngx_http_cafs_module = {
    NGX_MODULE_V1,
    &ngx_http_cafs_module_ctx,
    ngx_http_cafs_commands,
    NGX_HTTP_MODULE,
    NULL,
    NULL,
    ngx_http_cafs_init_process,
    NULL,
    NULL,
    ngx_http_cafs_exit_process,
    NULL,
    NGX_MODULE_V1_PADDING,
};
