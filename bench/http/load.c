/* Sends the requests of a plan over a number of connections and says how long each took.
 *
 *   load ADDRESS PORT http|https CONNECTIONS keep|fresh PLAN [HEADER...]
 *
 * A line of the plan has five fields with tabs between: method, path, the status that must come
 * back, a file with the body or -, one more header or -.  Each connection takes the next request
 * as soon as it has the whole answer to its last one; with "fresh" it closes in between, so that
 * a request includes connect and TLS handshake.  Prints one JSON object.
 *
 * One thread and epoll: what it takes of a core is told ("cpu_s"), so that one can see that the
 * server was the one that had to work.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_BYTES = 16 << 10, SCRATCH_BYTES = 256 << 10, PIECE_BYTES = 256 << 10 };

struct body {
    char *path;
    const char *data;
    size_t length;
};

struct request {
    char *head;
    size_t head_length;
    struct body *body;
    int status;
    bool no_answer_body;
    char *line;
};

enum step { CONNECTING, HANDSHAKE, SENDING, HEADER, BODY, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER };

struct connection {
    int fd;
    SSL *ssl;
    enum step step;
    struct request *request;
    size_t sent;
    size_t have;
    size_t at;
    unsigned long long left;
    bool until_close, close_after;
    uint32_t events;
    double start;
    char head[HEAD_BYTES + 1];
};

static struct sockaddr_in target;
static SSL_CTX *tls;
static bool fresh;
static struct request *requests;
static size_t count, next_request, finished;
static double *latencies;
static unsigned long long moved;
static struct connection *connections;
static int poller;
static char scratch[SCRATCH_BYTES];

static void fail(const char *what, const struct connection *c, const char *detail)
{
    fprintf(stderr, "%s%s%s%s%s\n", what, c && c->request ? ": " : "",
            c && c->request ? c->request->line : "", detail ? ": " : "", detail ? detail : "");
    exit(1);
}

static double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec * 1e-9;
}

static struct body *body_of(const char *path)
{
    static struct body *known;
    static size_t known_count;
    for (size_t i = 0; i < known_count; i++)
        if (!strcmp(known[i].path, path))
            return &known[i];
    /* Grown in one piece ahead of time: requests keep pointers into it. */
    if (!known && !(known = calloc(65536, sizeof *known)))
        fail("no memory", NULL, NULL);
    if (known_count == 65536)
        fail("too many bodies", NULL, NULL);
    struct body *body = &known[known_count++];
    int fd = open(path, O_RDONLY);
    struct stat st;
    if (fd < 0 || fstat(fd, &st))
        fail("cannot read a body", NULL, path);
    body->path = strdup(path);
    body->length = (size_t)st.st_size;
    body->data = "";
    if (body->length) {
        void *data = mmap(NULL, body->length, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
        if (data == MAP_FAILED)
            fail("cannot map a body", NULL, path);
        body->data = data;
    }
    close(fd);
    return body;
}

static void read_plan(const char *path, char **headers)
{
    char common[8192] = "";
    for (; *headers; headers++)
        snprintf(common + strlen(common), sizeof common - strlen(common), "%s\r\n", *headers);
    FILE *plan = fopen(path, "r");
    if (!plan)
        fail("cannot read the plan", NULL, path);
    char *line = NULL;
    size_t size = 0, room = 0;
    ssize_t length;
    while ((length = getline(&line, &size, plan)) > 0) {
        line[length - 1] = '\0';
        char *rest = line, *field[5];
        for (int i = 0; i < 5; i++)
            if (!(field[i] = strsep(&rest, "\t")))
                fail("a line of the plan lacks fields", NULL, line);
        if (count == room) {
            room = room ? 2 * room : 1024;
            requests = realloc(requests, room * sizeof *requests);
        }
        struct request *r = &requests[count++];
        r->status = atoi(field[2]);
        r->no_answer_body = !strcmp(field[0], "HEAD");
        r->body = strcmp(field[3], "-") ? body_of(field[3]) : NULL;
        char sized[64] = "";
        if (r->body)
            snprintf(sized, sizeof sized, "Content-Length: %zu\r\n", r->body->length);
        bool more = strcmp(field[4], "-") != 0;
        if (asprintf(&r->head, "%s %s HTTP/1.1\r\n%s%s%s%s%s\r\n", field[0], field[1], common, sized,
                     more ? field[4] : "", more ? "\r\n" : "", fresh ? "Connection: close\r\n" : "") < 0 ||
            asprintf(&r->line, "%s %s", field[0], field[1]) < 0)
            fail("no memory", NULL, NULL);
        r->head_length = strlen(r->head);
    }
    free(line);
    fclose(plan);
    if (!count)
        fail("the plan is empty", NULL, path);
    latencies = calloc(count, sizeof *latencies);
}

static void want(struct connection *c, uint32_t events)
{
    if (c->events == events)
        return;
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(poller, c->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, c->fd, &event))
        fail("epoll_ctl", c, strerror(errno));
    c->events = events;
}

static void hang_up(struct connection *c)
{
    if (c->ssl) {
        SSL_free(c->ssl);
        c->ssl = NULL;
    }
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->events = 0;
}

/* Bytes moved, 0 at the end of the stream, -1: not now (and it is known what to wait for). */
static ssize_t receive(struct connection *c, char *into, size_t room)
{
    if (!c->ssl) {
        ssize_t got = recv(c->fd, into, room, 0);
        if (got < 0) {
            if (errno != EAGAIN)
                fail("recv", c, strerror(errno));
            want(c, EPOLLIN);
        }
        return got;
    }
    int got = SSL_read(c->ssl, into, (int)room);
    if (got > 0)
        return got;
    int error = SSL_get_error(c->ssl, got);
    if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) {
        want(c, error == SSL_ERROR_WANT_READ ? EPOLLIN : EPOLLOUT);
        return -1;
    }
    if (error != SSL_ERROR_ZERO_RETURN)
        fail("the TLS stream was cut", c, ERR_error_string(ERR_get_error(), NULL));
    return 0;
}

static ssize_t put(struct connection *c, const char *from, size_t length, bool more)
{
    if (!c->ssl) {
        ssize_t gone = send(c->fd, from, length, MSG_NOSIGNAL | (more ? MSG_MORE : 0));
        if (gone < 0) {
            if (errno != EAGAIN)
                fail("send", c, strerror(errno));
            want(c, EPOLLOUT);
        }
        return gone;
    }
    int gone = SSL_write(c->ssl, from, (int)(length < PIECE_BYTES ? length : PIECE_BYTES));
    if (gone > 0)
        return gone;
    int error = SSL_get_error(c->ssl, gone);
    if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE)
        fail("SSL_write", c, ERR_error_string(ERR_get_error(), NULL));
    want(c, error == SSL_ERROR_WANT_READ ? EPOLLIN : EPOLLOUT);
    return -1;
}

static void dial(struct connection *c)
{
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int on = 1;
    if (c->fd < 0)
        fail("socket", c, strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(c->fd, (struct sockaddr *)&target, sizeof target) && errno != EINPROGRESS)
        fail("connect", c, strerror(errno));
    c->step = CONNECTING;
    want(c, EPOLLOUT);
}

/* Takes the next request, if there is one. */
static bool begin(struct connection *c)
{
    if (next_request == count) {
        hang_up(c);
        return false;
    }
    c->request = &requests[next_request++];
    c->sent = c->have = c->at = 0;
    c->until_close = c->close_after = false;
    c->start = now();
    if (c->fd < 0)
        dial(c);
    else
        c->step = SENDING;
    return true;
}

static bool end(struct connection *c)
{
    latencies[finished++] = now() - c->start;
    if (c->request->body)
        moved += c->request->body->length;
    if (fresh || c->close_after)
        hang_up(c);
    return begin(c);
}

/* Sends head and body; true when all of it is gone. */
static bool send_request(struct connection *c)
{
    const struct request *r = c->request;
    while (c->sent < r->head_length) {
        bool more = r->body && r->body->length;
        ssize_t gone = put(c, r->head + c->sent, r->head_length - c->sent, more);
        if (gone < 0)
            return false;
        c->sent += (size_t)gone;
    }
    while (r->body && c->sent - r->head_length < r->body->length) {
        size_t done = c->sent - r->head_length;
        ssize_t gone = put(c, r->body->data + done, r->body->length - done, false);
        if (gone < 0)
            return false;
        c->sent += (size_t)gone;
    }
    return true;
}

static const char *field_of(const char *head, const char *name)
{
    const char *found = strcasestr(head, name);
    return found ? found + strlen(name) : NULL;
}

static bool chunks(struct connection *c);

/* The header is whole: what follows, and how much of it?  True when the answer is complete. */
static bool understand(struct connection *c, size_t header_length)
{
    c->head[header_length - 1] = '\0';
    int status = 0;
    if (sscanf(c->head, "HTTP/1.%*d %d", &status) != 1 || status != c->request->status) {
        char detail[64];
        snprintf(detail, sizeof detail, "status %d, expected %d", status, c->request->status);
        fail("a wrong answer", c, detail);
    }
    const char *connection = field_of(c->head, "\r\nConnection: ");
    c->close_after = connection && !strncasecmp(connection, "close", 5);
    const char *length = field_of(c->head, "\r\nContent-Length: ");
    const char *encoding = field_of(c->head, "\r\nTransfer-Encoding: ");
    size_t early = c->have - header_length;
    if (c->request->no_answer_body || status == 204 || status == 304)
        return true;
    if (encoding) {
        memmove(c->head, c->head + header_length, early);
        c->have = early;
        c->at = 0;
        c->left = 0;
        c->step = CHUNK_SIZE;
        return chunks(c);
    }
    moved += early;
    c->step = BODY;
    c->until_close = !length;
    c->left = length ? strtoull(length, NULL, 10) : 0;
    if (c->until_close)
        return false;
    if (early > c->left)
        fail("more came than was announced", c, NULL);
    c->left -= early;
    return c->left == 0;
}

/* What is chunked is small here (listings): byte by byte will do. */
static bool chunks(struct connection *c)
{
    for (; c->at < c->have; c->at++) {
        char byte = c->head[c->at];
        if (c->step == CHUNK_SIZE) {
            if (byte == '\n')
                c->step = c->left ? CHUNK : TRAILER;
            else if (byte != '\r')
                c->left = c->left * 16 + (unsigned)(byte <= '9' ? byte - '0' : (byte | 32) - 'a' + 10);
        } else if (c->step == CHUNK) {
            size_t here = c->have - c->at;
            size_t part = here < c->left ? here : (size_t)c->left;
            moved += part;
            c->left -= part;
            c->at += part - 1;
            if (!c->left)
                c->step = CHUNK_END;
        } else if (c->step == CHUNK_END) {
            if (byte == '\n')
                c->step = CHUNK_SIZE;
        } else if (byte == '\n') {
            return true;
        }
    }
    c->at = c->have = 0;
    return false;
}

/* Goes on with a connection until it would block; false when there is nothing left for it. */
static bool go_on(struct connection *c)
{
    for (;;) {
        bool complete = false;
        ssize_t got;
        switch (c->step) {
        case CONNECTING: {
            int error = 0;
            socklen_t length = sizeof error;
            if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &length) || error)
                fail("connect", c, strerror(error));
            c->step = SENDING;
            if (tls) {
                c->ssl = SSL_new(tls);
                SSL_set_fd(c->ssl, c->fd);
                SSL_set_connect_state(c->ssl);
                c->step = HANDSHAKE;
            }
            break;
        }
        case HANDSHAKE: {
            int done = SSL_do_handshake(c->ssl);
            if (done != 1) {
                int error = SSL_get_error(c->ssl, done);
                if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE)
                    fail("TLS handshake", c, ERR_error_string(ERR_get_error(), NULL));
                want(c, error == SSL_ERROR_WANT_READ ? EPOLLIN : EPOLLOUT);
                return true;
            }
            c->step = SENDING;
            break;
        }
        case SENDING:
            if (!send_request(c))
                return true;
            c->step = HEADER;
            /* The answer is never there yet: ask the poller before the socket. */
            if (!c->ssl) {
                want(c, EPOLLIN);
                return true;
            }
            break;
        case HEADER: {
            got = receive(c, c->head + c->have, HEAD_BYTES - c->have);
            if (got < 0)
                return true;
            if (got == 0)
                fail("closed before an answer", c, NULL);
            c->have += (size_t)got;
            c->head[c->have] = '\0';
            char *blank = strstr(c->head, "\r\n\r\n");
            if (blank) {
                complete = understand(c, (size_t)(blank - c->head) + 4);
            } else if (c->have == HEAD_BYTES) {
                fail("an endless header", c, NULL);
            }
            break;
        }
        case BODY:
            got = receive(c, scratch, c->until_close || c->left > SCRATCH_BYTES ? SCRATCH_BYTES : (size_t)c->left);
            if (got < 0)
                return true;
            if (got == 0 && !c->until_close)
                fail("a short body", c, NULL);
            moved += (unsigned long long)got;
            if (c->until_close) {
                complete = got == 0;
                c->close_after = true;
            } else {
                c->left -= (unsigned long long)got;
                complete = c->left == 0;
            }
            break;
        default:
            got = receive(c, c->head, HEAD_BYTES);
            if (got < 0)
                return true;
            if (got == 0)
                fail("a short body", c, NULL);
            c->have = (size_t)got;
            c->at = 0;
            complete = chunks(c);
        }
        if (complete && !end(c))
            return false;
        if (complete && c->step == CONNECTING)
            return true;
    }
}

static int by_size(const void *a, const void *b)
{
    double one = *(const double *)a, two = *(const double *)b;
    return (one > two) - (one < two);
}

int main(int argc, char **argv)
{
    if (argc < 7) {
        fprintf(stderr, "usage: load ADDRESS PORT http|https CONNECTIONS keep|fresh PLAN [HEADER...]\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    target.sin_family = AF_INET;
    target.sin_port = htons((uint16_t)atoi(argv[2]));
    inet_pton(AF_INET, argv[1], &target.sin_addr);
    fresh = !strcmp(argv[5], "fresh");
    if (!strcmp(argv[3], "https")) {
        tls = SSL_CTX_new(TLS_client_method());
        /* The servers are our own, on this machine; what a check costs would be the client's. */
        SSL_CTX_set_verify(tls, SSL_VERIFY_NONE, NULL);
        SSL_CTX_set_session_cache_mode(tls, SSL_SESS_CACHE_OFF);
        SSL_CTX_set_mode(tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    }
    read_plan(argv[6], argv + 7);
    size_t wanted = (size_t)atoi(argv[4]);
    size_t number = wanted < count ? wanted : count, open_connections = 0;
    connections = calloc(number, sizeof *connections);
    poller = epoll_create1(EPOLL_CLOEXEC);
    double start = now();
    for (size_t i = 0; i < number; i++) {
        connections[i].fd = -1;
        open_connections += begin(&connections[i]);
    }
    while (open_connections) {
        struct epoll_event events[64];
        int ready = epoll_wait(poller, events, 64, 60000);
        if (ready == 0)
            fail("nothing came for a minute", NULL, NULL);
        for (int i = 0; i < ready; i++)
            open_connections -= !go_on(events[i].data.ptr);
    }
    double seconds = now() - start;
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    qsort(latencies, count, sizeof *latencies, by_size);
    printf("{\"seconds\": %.6f, \"operations\": %zu, \"bytes\": %llu, \"p50_s\": %.7f, \"p99_s\": %.7f, "
           "\"max_s\": %.7f, \"cpu_s\": %.6f}\n",
           seconds, count, moved, latencies[count / 2], latencies[count * 99 / 100], latencies[count - 1],
           (double)used.ru_utime.tv_sec + (double)used.ru_stime.tv_sec +
               1e-6 * (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec));
    return 0;
}
