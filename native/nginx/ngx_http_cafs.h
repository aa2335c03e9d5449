/* What the parts of the nginx module share. */
#ifndef NGX_HTTP_CAFS_H
#define NGX_HTTP_CAFS_H

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

#include "cachefile.h"
#include "store.h"
#include "window.h"

/* Of the bits of r->buffered, the one that only the image filter uses. */
#define NGX_HTTP_CAFS_BUFFERED 0x08

#define NGX_HTTP_CAFS_VERIFY_OFF 0
#define NGX_HTTP_CAFS_VERIFY_ON 1     /* what was verified is sent */
#define NGX_HTTP_CAFS_VERIFY_CACHED 2 /* what was verified is sent from the page cache, by sendfile */

/* A store that some location serves.  Made with the configuration; opened by each worker for
 * itself, at its first request. */
typedef struct {
    ngx_str_t path;
    ngx_str_t pending;
    struct cafs_store store;
} ngx_http_cafs_site_t;

/* Blobs with damage that are remembered. */
#define NGX_HTTP_CAFS_SUSPECTS 16

/* Counted by all workers together, over reloads; never reset. */
typedef struct {
    ngx_atomic_t found;       /* answered with a file, or that it has not changed */
    ngx_atomic_t missing;     /* answered 404 */
    ngx_atomic_t refused;     /* answered 301 or 403 */
    ngx_atomic_t handed_over; /* given to the daemon */
    ngx_atomic_t pending;     /* of these, because something was not committed yet */
    ngx_atomic_t damaged;     /* ended with 500 or cut, because bytes on disk are wrong */
    ngx_atomic_t unavailable; /* answered 503 */
    ngx_atomic_t bytes;       /* of blobs, sent */
    ngx_atomic_t waits;       /* reads that were left to a thread */
    ngx_atomic_t next_suspect;
    ngx_atomic_t suspects[NGX_HTTP_CAFS_SUSPECTS]; /* when, and low bits of the blob's number */
    ngx_atomic_t cached; /* of those found, from a file of the cache */
} ngx_http_cafs_counters_t;

typedef struct {
    ngx_array_t sites; /* of ngx_http_cafs_site_t * */
    ngx_shm_zone_t *zone;
#if (NGX_THREADS)
    ngx_thread_pool_t *threads;
#endif
    struct cafs_caller caller; /* the worker's own */
} ngx_http_cafs_main_conf_t;

typedef struct {
    ngx_http_cafs_site_t *site; /* NULL: this location is none of ours */
    ngx_str_t store;
    ngx_str_t pending;
    ngx_str_t fallback;
    ngx_str_t secret_file;
    ngx_str_t secret;
    ngx_uint_t verify; /* one of NGX_HTTP_CAFS_VERIFY_... */
    ngx_msec_t grace;
    size_t prefix; /* bytes of the URI before the path in the tree */
} ngx_http_cafs_loc_conf_t;

/* What is known of a blob that was taken apart and has a file in the cache. */
typedef struct {
    struct cafs_node node;
    struct cafs_cached file;
    int fd; /* one of the response's packs */
    const char *why;
    int error;
} ngx_http_cafs_cached_t;

/* A response with a body. */
typedef struct {
    ngx_http_cafs_loc_conf_t *conf;
    ngx_http_cafs_site_t *site;
    uint64_t ino;
    uint64_t blob;
    uint64_t first; /* the byte that was read before the header was sent */
    ngx_uint_t verify; /* as in the location, but a file of the cache is always verified, and what is old */
    ngx_msec_t begun; /* before the recipe was read */
    size_t stretch_first; /* parts [first, last) are what sendfile was given last */
    size_t stretch_last;
    size_t read; /* into the window, since somebody set this to 0 */
    ngx_http_cafs_cached_t *cached; /* NULL: the bytes come from packs */
    struct cafs_recipe recipe;
    struct cafs_packs packs;
    struct cafs_window window;
    ngx_file_t file; /* stands for the blob in buffers, until its bytes are put in place */
    ngx_file_t pack; /* what sendfile is given, without verification */
    ngx_chain_t *in;
    ngx_chain_t *busy;
    ngx_chain_t *free;
#if (NGX_THREADS)
    ngx_thread_task_t *task;
#endif
    enum cafs_fill filled; /* by the thread */
    unsigned has_recipe : 1;
    unsigned has_window : 1;
    unsigned is_posted : 1; /* a thread fills the window, or has done so */
    unsigned is_noted : 1;  /* the daemon was told of this read */
} ngx_http_cafs_ctx_t;

extern ngx_module_t ngx_http_cafs_module;

ngx_http_cafs_counters_t *ngx_http_cafs_counters(ngx_http_request_t *r);
#define ngx_http_cafs_count(r, counter, n)                                                             \
    (void)ngx_atomic_fetch_add(&ngx_http_cafs_counters(r)->counter, (ngx_atomic_int_t)(n))

/* What a thread does: *data points to the response's context. */
typedef void (*ngx_http_cafs_work_pt)(void *data, ngx_log_t *log);

/* ngx_http_cafs_handler.c */
ngx_int_t ngx_http_cafs_handler(ngx_http_request_t *r);
ngx_int_t ngx_http_cafs_status_handler(ngx_http_request_t *r);

/* Leave the request to the daemon. */
ngx_int_t ngx_http_cafs_hand_over(ngx_http_request_t *r, ngx_http_cafs_loc_conf_t *conf);

/* The recipe of the response's blob, from a view of its own: NGX_OK, or a status. */
ngx_int_t ngx_http_cafs_read_recipe(ngx_http_request_t *r, ngx_http_cafs_ctx_t *ctx);

/* Log what is damaged. */
void ngx_http_cafs_log_fault(ngx_http_request_t *r, const struct cafs_fault *fault);

/* ngx_http_cafs_answer.c */

/* A time of the index as HTTP has it. */
time_t ngx_http_cafs_seconds(int64_t ns);

/* Where the body will begin, most likely; nginx's range filter decides. */
uint64_t ngx_http_cafs_likely_start(ngx_http_request_t *r, off_t size);

/* Answer for an inode that was found.  A response that has its context already has its recipe there. */
ngx_int_t ngx_http_cafs_answer(ngx_http_request_t *r, ngx_http_cafs_loc_conf_t *conf,
                               const struct cafs_node *node, struct cafs_recipe *recipe, int has_recipe);

/* ngx_http_cafs_body.c */
ngx_int_t ngx_http_cafs_body_init(ngx_conf_t *cf);

/* A context for a response, which ends with the request and takes the recipe over, come what may. */
ngx_http_cafs_ctx_t *ngx_http_cafs_create_ctx(ngx_http_request_t *r, ngx_http_cafs_loc_conf_t *conf,
                                              struct cafs_recipe *recipe);

/* Let go of what a context holds, if it will not be used; twice is once. */
void ngx_http_cafs_release(ngx_http_cafs_ctx_t *ctx);

#if (NGX_THREADS)
/* Have a thread do *work*; then it calls r->write_event_handler: NGX_AGAIN or NGX_ERROR. */
ngx_int_t ngx_http_cafs_post(ngx_http_request_t *r, ngx_http_cafs_ctx_t *ctx, ngx_http_cafs_work_pt work);
#endif

/* Have byte *at* of the blob in the window: NGX_OK; NGX_AGAIN: a thread reads, and then calls
 * r->write_event_handler; NGX_ERROR: it cannot be had, which is logged and counted. */
ngx_int_t ngx_http_cafs_load(ngx_http_request_t *r, ngx_http_cafs_ctx_t *ctx, uint64_t at, uint64_t end);

/* ngx_http_cafs_cached.c */

/* Answer a GET from the file that *file* tells of, or leave it to the daemon. */
ngx_int_t ngx_http_cafs_cached(ngx_http_request_t *r, ngx_http_cafs_loc_conf_t *conf,
                               const struct cafs_node *node, const struct cafs_cached *file);

/* Log that a block of such a file cannot be sent. */
void ngx_http_cafs_log_block(ngx_http_request_t *r, ngx_http_cafs_ctx_t *ctx);

/* ngx_http_cafs_fault.c */

/* Remember that *blob* has damage, for a minute, in all workers; and whether it is remembered. */
void ngx_http_cafs_suspect(ngx_http_request_t *r, uint64_t blob);
int ngx_http_cafs_is_suspect(ngx_http_request_t *r, uint64_t blob);

/* The bytes of a failed body must not look complete, nor end in good order: a client that does not
 * count them would take them for the blob. */
void ngx_http_cafs_cut(ngx_http_request_t *r);

/* Cut at the end of *r* if its body is shorter than was said: NGX_OK or NGX_ERROR. */
ngx_int_t ngx_http_cafs_watch_length(ngx_http_request_t *r);

/* ngx_http_cafs_sites.c */
ngx_http_cafs_site_t *ngx_http_cafs_site(ngx_conf_t *cf, ngx_http_cafs_main_conf_t *mcf, ngx_str_t *path,
                                         ngx_str_t *pending);
ngx_int_t ngx_http_cafs_read_secret(ngx_conf_t *cf, ngx_str_t *file, ngx_str_t *secret);

/* Begin a view of the site: NGX_OK, NGX_DECLINED (hand over) or 503. */
ngx_int_t ngx_http_cafs_begin(ngx_http_request_t *r, ngx_http_cafs_site_t *site, struct cafs_view *view);

#endif
