/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/listeners.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "vhdd/control/socket.h"

#define BACKLOG        1024
#define STALE_ATTEMPTS 20
#define STALE_PAUSE_MS 100
/* "p:PID ", whom it is meant for, and "KIND:FD " for each that execve() leaves: kinds l (lock), C and N
 * (ours), c and n (handed to us). */
#define KEPT_VARIABLE "VHDD_KEPT_FDS"

union address {
        struct sockaddr sa;
        struct sockaddr_un un;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
        struct sockaddr_storage storage;
};

/* --- from outside --- */

static bool listens(int fd)
{
        int listening = 0;
        socklen_t size = sizeof(listening);

        return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) == 0 && listening;
}

static int take_nbd(struct listeners *listeners, int fd, bool own, struct error *err)
{
        if (listeners->n_nbd == LISTENERS_MAX_NBD)
                return fail(err, EMFILE, "there are more than %u sockets for NBD clients",
                        LISTENERS_MAX_NBD);
        if (!listens(fd))
                return fail(err, EINVAL,
                        "descriptor %d, handed in for NBD, is no socket that listens", fd);
        listeners->nbd_is_own[listeners->n_nbd] = own;
        listeners->nbd_fds[listeners->n_nbd++] = fd;
        return 0;
}

static int take_control(struct listeners *listeners, int fd, bool own, struct error *err)
{
        if (listeners->control_fd >= 0)
                return fail(err, EINVAL, "two control sockets were handed in");
        if (!listens(fd))
                return fail(err, EINVAL,
                        "descriptor %d, handed in for control, is no socket that listens", fd);
        listeners->control_fd = fd;
        listeners->control_is_own = own;
        return 0;
}

static void free_names(char ***names)
{
        for (char **name = *names; name && *name; name++)
                free(*name);
        free(*names);
}

static int take_from_systemd(struct listeners *listeners, struct error *err)
{
        _cleanup_(free_names) char **names = NULL;
        int n = sd_listen_fds_with_names(1, &names), r = 0;

        if (n < 0)
                return fail_os(err, -n, "cannot take the sockets of the service manager");
        for (int i = 0; r == 0 && i < n; i++) {
                int fd = SD_LISTEN_FDS_START + i;

                if (strcmp(names[i], "control") == 0)
                        r = take_control(listeners, fd, false, err);
                else if (strcmp(names[i], "nbd") == 0)
                        r = take_nbd(listeners, fd, false, err);
                else
                        r = fail(err, EINVAL,
                                "the service manager hands in a socket '%s'; known are 'control' "
                                "and 'nbd'",
                                names[i]);
        }
        return r;
}

static int take_kept(struct listeners *listeners, const char *text, struct error *err)
{
        char kind;
        int fd, n, r = 0;

        for (; r == 0 && sscanf(text, " %c:%d%n", &kind, &fd, &n) == 2; text += n) {
                if (kind == 'p') {
                        if (fd != (int)getpid())
                                return 0;
                        continue;
                }
                if (fd < 3 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
                        return fail(err, EBADF, "descriptor %d was not kept over the restart", fd);
                switch (kind) {
                case 'l': listeners->lock_fd = fd; break;
                case 'C':
                case 'c': r = take_control(listeners, fd, kind == 'C', err); break;
                case 'N':
                case 'n': r = take_nbd(listeners, fd, kind == 'N', err); break;
                default: r = fail(err, EINVAL, "%s says '%s'", KEPT_VARIABLE, text);
                }
        }
        return r;
}

int listeners_take(struct listeners *listeners, struct error *err)
{
        _cleanup_free_ char *kept = NULL;
        const char *text = getenv(KEPT_VARIABLE);
        int r = take_from_systemd(listeners, err);

        if (r < 0 || !text)
                return r;
        kept = strdup(text);
        if (!kept)
                return fail(err, ENOMEM, "no memory for the sockets that were kept");
        unsetenv(KEPT_VARIABLE);
        return take_kept(listeners, kept, err);
}

/* --- over execve --- */

static int keep(FILE *out, char kind, int fd)
{
        if (fd < 0)
                return 0;
        fprintf(out, "%c:%d ", kind, fd);
        return fcntl(fd, F_SETFD, 0) < 0 ? -errno : 0;
}

int listeners_keep(const struct listeners *listeners, struct error *err)
{
        _cleanup_free_ char *text = NULL;
        size_t size = 0;
        FILE *out = open_memstream(&text, &size);
        int r;

        if (!out)
                return fail(err, ENOMEM, "no memory to keep the sockets");
        fprintf(out, "p:%d ", (int)getpid());
        r = keep(out, 'l', listeners->lock_fd);
        if (r == 0)
                r = keep(out, listeners->control_is_own ? 'C' : 'c', listeners->control_fd);
        for (unsigned i = 0; r == 0 && i < listeners->n_nbd; i++)
                r = keep(out, listeners->nbd_is_own[i] ? 'N' : 'n', listeners->nbd_fds[i]);
        if (fclose(out) != 0 || (r == 0 && setenv(KEPT_VARIABLE, text, 1) < 0))
                r = -ENOMEM;
        return r == 0 ? 0 : fail_os(err, -r, "cannot keep the sockets");
}

/* --- made here --- */

/* 1: somebody does. 0: nobody. */
static int somebody_listens(const char *path, const union address *address, struct error *err)
{
        _cleanup_fd_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

        if (fd < 0)
                return fail_os(err, errno, "cannot make a socket");
        if (connect(fd, &address->sa, sizeof(address->un)) == 0 || errno == EAGAIN)
                return 1;
        if (errno == ECONNREFUSED || errno == ENOENT)
                return 0;
        return fail_os(err, errno, "cannot tell whether a server listens at '%s'", path);
}

/* A path that a dead server left: nobody answers there. The greeter of a broker that was killed is killed
 * by the kernel, too, but may be so a moment later. */
static int remove_stale(const char *path, const union address *address, struct error *err)
{
        const struct timespec pause = {.tv_nsec = STALE_PAUSE_MS * 1000000L};
        struct stat st;
        int r = 1;

        if (lstat(path, &st) < 0)
                return errno == ENOENT ? 0 : fail_os(err, errno, "cannot look at '%s'", path);
        if (!S_ISSOCK(st.st_mode))
                return fail(err, EEXIST, "'%s' is there already, and is no socket", path);
        for (unsigned i = 0; r > 0 && i < STALE_ATTEMPTS; i++) {
                if (i > 0)
                        nanosleep(&pause, NULL);
                r = somebody_listens(path, address, err);
        }
        if (r < 0)
                return r;
        if (r > 0)
                return fail(err, EADDRINUSE, "another server listens at '%s'", path);
        if (unlink(path) < 0 && errno != ENOENT)
                return fail_os(err, errno, "cannot remove the old socket '%s'", path);
        return 0;
}

/* Whoever connects can write the disks: owner and mode are right before listen(). */
static int open_unix(struct listeners *listeners, const char *path, gid_t group, struct error *err)
{
        union address address = {.un = {.sun_family = AF_UNIX}};
        _cleanup_fd_ int fd = -1;
        int r;

        if (strlen(path) >= sizeof(address.un.sun_path))
                return fail(err, ENAMETOOLONG, "a socket's path has at most %zu bytes: '%s'",
                        sizeof(address.un.sun_path) - 1, path);
        memcpy(address.un.sun_path, path, strlen(path) + 1);
        r = remove_stale(path, &address, err);
        if (r < 0)
                return r;
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0 || bind(fd, &address.sa, sizeof(address.un)) < 0)
                return fail_os(err, errno, "cannot listen at '%s'", path);
        if ((group != CONTROL_NO_GROUP && lchown(path, (uid_t)-1, group) < 0) ||
                chmod(path, group == CONTROL_NO_GROUP ? 0600 : 0660) < 0 || listen(fd, BACKLOG) < 0)
                r = fail_os(err, errno, "cannot listen at '%s'", path);
        if (r == 0)
                r = take_nbd(listeners, fd, true, err);
        if (r < 0) {
                unlink(path);
                return r;
        }
        TAKE_FD(fd);
        return 0;
}

static bool is_loopback(const union address *address)
{
        if (address->sa.sa_family == AF_INET)
                return ntohl(address->in.sin_addr.s_addr) >> 24 == 127;
        return address->sa.sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&address->in6.sin6_addr);
}

static int open_tcp_address(
        struct listeners *listeners, const struct addrinfo *ai, const char *text, struct error *err)
{
        _cleanup_fd_ int fd = -1;
        int on = 1, r;

        if (!is_loopback((const union address *)ai->ai_addr))
                return fail(err, EACCES,
                        "'%s' is not a loopback address, and without TLS anybody there could read and "
                        "write the disks",
                        text);
        fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, ai->ai_protocol);
        if (fd < 0)
                return fail_os(err, errno, "cannot make a socket for '%s'", text);
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
        if (ai->ai_family == AF_INET6)
                setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
        if (bind(fd, ai->ai_addr, ai->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0)
                return fail_os(err, errno, "cannot listen at '%s'", text);
        r = take_nbd(listeners, fd, true, err);
        if (r == 0)
                TAKE_FD(fd);
        return r;
}

static void free_addresses(struct addrinfo **all)
{
        if (*all)
                freeaddrinfo(*all);
}

/* "localhost:10809", "[::1]:10809" */
static int open_tcp(struct listeners *listeners, const char *text, struct error *err)
{
        const struct addrinfo hints = {
                .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
        _cleanup_(free_addresses) struct addrinfo *all = NULL;
        const char *colon = strrchr(text, ':');
        bool bracketed = text[0] == '[' && colon > text + 1 && colon[-1] == ']';
        _cleanup_free_ char *host = bracketed ? strndup(text + 1, (size_t)(colon - text) - 2)
                                              : strndup(text, (size_t)(colon - text));
        unsigned before = listeners->n_nbd;
        int r;

        if (!host)
                return fail(err, ENOMEM, "no memory for the address '%s'", text);
        r = getaddrinfo(host, colon + 1, &hints, &all);
        if (r != 0)
                return fail(err, EINVAL, "cannot find the address '%s': %s", text, gai_strerror(r));
        for (const struct addrinfo *ai = all; ai; ai = ai->ai_next) {
                r = open_tcp_address(listeners, ai, text, err);
                /* A host without IPv6 still knows localhost's ::1. */
                if (r < 0 && r != -EADDRNOTAVAIL && r != -EAFNOSUPPORT)
                        return r;
        }
        return listeners->n_nbd > before
                ? 0
                : fail(err, EADDRNOTAVAIL, "no address of '%s' can be listened at", text);
}

/* --- what they are --- */

static void forget(char ***list, size_t *n)
{
        for (size_t i = 0; i < *n; i++)
                free((*list)[i]);
        free(*list);
        *list = NULL;
        *n = 0;
}

static int append(char ***list, size_t *n, char *text, struct error *err)
{
        char **grown = text ? reallocarray(*list, *n + 2, sizeof(**list)) : NULL;

        if (!grown) {
                free(text);
                return fail(err, ENOMEM, "no memory for the sockets' names");
        }
        grown[(*n)++] = text;
        grown[*n] = NULL;
        *list = grown;
        return 0;
}

static char *authority_of(const union address *address)
{
        char host[INET6_ADDRSTRLEN] = "";
        char *ret = NULL;
        bool v6 = address->sa.sa_family == AF_INET6;
        int n;

        if (v6)
                inet_ntop(AF_INET6, &address->in6.sin6_addr, host, sizeof(host));
        else
                inet_ntop(AF_INET, &address->in.sin_addr, host, sizeof(host));
        n = asprintf(&ret, v6 ? "[%s]:%u" : "%s:%u", host,
                ntohs(v6 ? address->in6.sin6_port : address->in.sin_port));
        return n < 0 ? NULL : ret;
}

/* The options say what is listened at: a port that was 0 has its number now. */
static int describe(
        const struct listeners *listeners, struct broker_options *options, struct error *err)
{
        int r = 0;

        forget(&options->nbd_paths, &options->n_nbd_paths);
        forget(&options->nbd_addresses, &options->n_nbd_addresses);
        for (unsigned i = 0; r == 0 && i < listeners->n_nbd; i++) {
                union address address = {0};
                socklen_t size = sizeof(address);

                if (getsockname(listeners->nbd_fds[i], &address.sa, &size) < 0)
                        return fail_os(err, errno, "cannot tell where descriptor %d listens",
                                listeners->nbd_fds[i]);
                if (address.sa.sa_family == AF_UNIX)
                        r = append(&options->nbd_paths, &options->n_nbd_paths,
                                strdup(address.un.sun_path), err);
                else
                        r = append(&options->nbd_addresses, &options->n_nbd_addresses,
                                authority_of(&address), err);
        }
        return r;
}

static int describe_control(
        const struct listeners *listeners, struct broker_options *options, struct error *err)
{
        union address address = {0};
        socklen_t size = sizeof(address);
        char *path;

        if (getsockname(listeners->control_fd, &address.sa, &size) < 0 ||
                address.sa.sa_family != AF_UNIX)
                return fail(err, EINVAL, "the control socket that was handed in is no unix socket");
        path = strdup(address.un.sun_path);
        if (!path)
                return fail(err, ENOMEM, "no memory for the control socket's name");
        free(options->control_path);
        options->control_path = path;
        return 0;
}

int listeners_open(
        struct listeners *listeners, struct broker_options *options, gid_t group, struct error *err)
{
        int r = 0;

        if (listeners->control_fd < 0) {
                r = control_listen(options->control_path, group, &listeners->control_fd, err);
                listeners->control_is_own = r == 0;
        }
        if (r == 0)
                r = describe_control(listeners, options, err);
        if (listeners->n_nbd == 0) {
                for (size_t i = 0; r == 0 && i < options->n_nbd_paths; i++)
                        r = open_unix(listeners, options->nbd_paths[i], group, err);
                for (size_t i = 0; r == 0 && i < options->n_nbd_addresses; i++)
                        r = open_tcp(listeners, options->nbd_addresses[i], err);
        }
        return r == 0 ? describe(listeners, options, err) : r;
}

static void close_one(int fd, bool own)
{
        union address address = {0};
        socklen_t size = sizeof(address);

        if (fd < 0)
                return;
        if (own && getsockname(fd, &address.sa, &size) == 0 && address.sa.sa_family == AF_UNIX)
                unlink(address.un.sun_path);
        close(fd);
}

void listeners_close(struct listeners *listeners)
{
        for (unsigned i = 0; i < listeners->n_nbd; i++)
                close_one(listeners->nbd_fds[i], listeners->nbd_is_own[i]);
        listeners->n_nbd = 0;
        close_one(TAKE_FD(listeners->control_fd), listeners->control_is_own);
        if (listeners->lock_fd >= 0)
                close(TAKE_FD(listeners->lock_fd));
}
