/* SPDX-License-Identifier: Apache-2.0 */
/* Sockets: those that listen, and what an accepted one must be. */
#include <arpa/inet.h>
#include <assert.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/arith.h"
#include "nbd/server/private.h"

#define BACKLOG 256

union address {
        struct sockaddr sa;
        struct sockaddr_un un;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
        struct sockaddr_storage storage;
};

static bool is_loopback(const union address *address)
{
        if (address->sa.sa_family == AF_INET)
                return ntohl(address->in.sin_addr.s_addr) >> 24 == 127;
        if (address->sa.sa_family == AF_INET6)
                return IN6_IS_ADDR_LOOPBACK(&address->in6.sin6_addr) ||
                        (IN6_IS_ADDR_V4MAPPED(&address->in6.sin6_addr) &&
                                address->in6.sin6_addr.s6_addr[12] == 127);
        return false;
}

/* A path that a dead server left: nobody answers there. */
static int remove_stale(const char *path, const struct sockaddr_un *address, struct error *err)
{
        _cleanup_fd_ int fd = -1;
        struct stat st;

        if (lstat(path, &st) < 0)
                return errno == ENOENT ? 0 : fail_os(err, errno, "cannot look at '%s'", path);
        if (!S_ISSOCK(st.st_mode))
                return fail(err, EEXIST, "'%s' exists and is not a socket", path);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0)
                return fail_os(err, errno, "cannot make a socket");
        if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0 ||
                errno == EAGAIN || errno == EINPROGRESS)
                return fail(err, EADDRINUSE, "another server listens on '%s'", path);
        if (errno != ECONNREFUSED)
                return fail_os(err, errno, "cannot tell whether a server listens on '%s'", path);
        if (unlink(path) < 0 && errno != ENOENT)
                return fail_os(err, errno, "cannot remove the dead socket '%s'", path);
        return 0;
}

int listener_open_unix(struct listener *ret, const char *path, struct error *err)
{
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        _cleanup_fd_ int fd = -1;
        struct stat st;
        int r;

        assert(path);
        if (path[0] == '\0' || strlen(path) >= sizeof(address.sun_path))
                return fail(err, ENAMETOOLONG, "a socket's path has 1 to %zu bytes: '%s'",
                        sizeof(address.sun_path) - 1, path);
        memcpy(address.sun_path, path, strlen(path) + 1);
        r = remove_stale(path, &address, err);
        if (r < 0)
                return r;
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0)
                return fail_os(err, errno, "cannot make a socket");
        if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
                return fail_os(err, errno, "cannot listen on '%s'", path);
        if (listen(fd, BACKLOG) < 0 || stat(path, &st) < 0) {
                r = fail_os(err, errno, "cannot listen on '%s'", path);
                unlink(path);
                return r;
        }
        *ret = (struct listener){.fd = -1, .device = st.st_dev, .inode = st.st_ino};
        /* The URI must hold wherever it is pasted. */
        ret->path = realpath(path, NULL);
        if (!ret->path) {
                r = fail_os(err, errno, "cannot listen on '%s'", path);
                unlink(path);
                return r;
        }
        ret->fd = TAKE_FD(fd);
        return 0;
}

/* "127.0.0.1:10809", "[::1]:10809" */
static char *authority_of(int fd)
{
        union address address;
        socklen_t size = sizeof(address);
        char host[INET6_ADDRSTRLEN];
        char *ret = NULL;

        if (getsockname(fd, &address.sa, &size) < 0)
                return NULL;
        if (address.sa.sa_family == AF_INET6) {
                inet_ntop(AF_INET6, &address.in6.sin6_addr, host, sizeof(host));
                if (asprintf(&ret, "[%s]:%u", host, ntohs(address.in6.sin6_port)) < 0)
                        return NULL;
        } else {
                inet_ntop(AF_INET, &address.in.sin_addr, host, sizeof(host));
                if (asprintf(&ret, "%s:%u", host, ntohs(address.in.sin_port)) < 0)
                        return NULL;
        }
        return ret;
}

static int open_address(
        struct listener *ret, const struct addrinfo *ai, const char *host, struct error *err)
{
        _cleanup_fd_ int fd = -1;
        int on = 1;

        fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, ai->ai_protocol);
        if (fd < 0)
                return fail_os(err, errno, "cannot make a socket for '%s'", host);
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
        if (ai->ai_family == AF_INET6)
                setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
        if (bind(fd, ai->ai_addr, ai->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0)
                return fail_os(err, errno, "cannot listen on '%s'", host);
        *ret = (struct listener){.fd = -1, .uri_authority = authority_of(fd)};
        if (!ret->uri_authority)
                return fail(err, ENOMEM, "no memory to listen on '%s'", host);
        ret->fd = TAKE_FD(fd);
        return 0;
}

static int open_addresses(struct listener *listeners, size_t *n, size_t max,
        const struct addrinfo *all, const char *host, struct error *err)
{
        size_t before = *n;
        int r;

        /* No TLS: what the host's name means may change, so look at the addresses. */
        for (const struct addrinfo *ai = all; ai; ai = ai->ai_next)
                if (!is_loopback((const union address *)ai->ai_addr))
                        return fail(err, EACCES,
                                "'%s' is not a loopback address, and without TLS anybody there could read and write the disk",
                                host);
        for (const struct addrinfo *ai = all; ai; ai = ai->ai_next) {
                r = *n == max ? fail(err, EMFILE, "more than %zu sockets to listen on", max)
                              : open_address(&listeners[*n], ai, host, err);
                /* A host without IPv6 still knows localhost's ::1. */
                if (r == -EADDRNOTAVAIL || r == -EAFNOSUPPORT)
                        continue;
                if (r < 0) {
                        while (*n > before)
                                listener_close(&listeners[--*n]);
                        return r;
                }
                ++*n;
        }
        if (*n == before)
                return fail(err, EADDRNOTAVAIL, "no address of '%s' can be listened on", host);
        return 0;
}

int listener_open_tcp(struct listener *listeners, size_t *n, size_t max, const char *host,
        uint16_t port, struct error *err)
{
        struct addrinfo hints = {
                .ai_socktype = SOCK_STREAM,
                .ai_flags = AI_PASSIVE | AI_NUMERICSERV,
        };
        struct addrinfo *all = NULL;
        char service[8];
        int r;

        snprintf(service, sizeof(service), "%u", port);
        r = getaddrinfo(host, service, &hints, &all);
        if (r != 0)
                return fail(err, r == EAI_MEMORY ? ENOMEM : EINVAL,
                        "cannot find the address '%s': %s", host, gai_strerror(r));
        r = open_addresses(listeners, n, max, all, host, err);
        freeaddrinfo(all);
        return r;
}

int listener_from_fd(struct listener *ret, int fd, struct error *err)
{
        union address address = {0};
        socklen_t size = sizeof(address);
        int listening = 0;
        socklen_t listening_size = sizeof(listening);

        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &listening_size) < 0 ||
                !listening || getsockname(fd, &address.sa, &size) < 0)
                return fail(err, EINVAL, "descriptor %d is no socket that listens", fd);

        *ret = (struct listener){.fd = -1};
        if (address.sa.sa_family == AF_UNIX) {
                /* Made by somebody else, so that one removes it: inode 0 is never ours. */
                ret->path = strndup(address.un.sun_path, sizeof(address.un.sun_path));
        } else if (is_loopback(&address)) {
                ret->uri_authority = authority_of(fd);
        } else {
                return fail(err, EACCES,
                        "descriptor %d listens neither on a unix socket nor on a loopback address",
                        fd);
        }
        if (!ret->path && !ret->uri_authority)
                return fail(err, ENOMEM, "no memory for a socket");
        ret->fd = fd;
        return 0;
}

void listener_close(struct listener *listener)
{
        struct stat st;

        if (listener->path && listener->inode != 0 && lstat(listener->path, &st) == 0 &&
                st.st_dev == listener->device && st.st_ino == listener->inode)
                unlink(listener->path);
        cleanup_fd(&listener->fd);
        free(listener->path);
        free(listener->uri_authority);
        *listener = (struct listener){.fd = -1};
}

static bool same_host(const union address *a, const union address *b)
{
        if (a->sa.sa_family != b->sa.sa_family)
                return false;
        if (a->sa.sa_family == AF_INET)
                return a->in.sin_addr.s_addr == b->in.sin_addr.s_addr;
        return memcmp(&a->in6.sin6_addr, &b->in6.sin6_addr, sizeof(a->in6.sin6_addr)) == 0;
}

/* Does the other end of a TCP connection live on this host? When in doubt, yes. */
static bool peer_is_local(const union address *peer)
{
        struct ifaddrs *all;
        bool found = false;

        if (is_loopback(peer) || getifaddrs(&all) < 0)
                return true;
        for (struct ifaddrs *i = all; i; i = i->ifa_next)
                if (i->ifa_addr && same_host((const union address *)i->ifa_addr, peer))
                        found = true;
        freeifaddrs(all);
        return found;
}

static void name_unix_peer(int fd, char *peer, size_t size)
{
        struct ucred who;
        socklen_t who_size = sizeof(who);

        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &who_size) < 0)
                snprintf(peer, size, "unix");
        else
                snprintf(peer, size, "unix:uid=%u,pid=%d", who.uid, who.pid);
}

static void name_tcp_peer(const union address *address, char *peer, size_t size)
{
        char host[INET6_ADDRSTRLEN] = "?";

        if (address->sa.sa_family == AF_INET6) {
                inet_ntop(AF_INET6, &address->in6.sin6_addr, host, sizeof(host));
                snprintf(peer, size, "tcp:[%s]:%u", host, ntohs(address->in6.sin6_port));
        } else {
                inet_ntop(AF_INET, &address->in.sin_addr, host, sizeof(host));
                snprintf(peer, size, "tcp:%s:%u", host, ntohs(address->in.sin_port));
        }
}

int socket_prepare(int fd, char *peer, size_t peer_size, bool *ret_may_sendfile, struct error *err)
{
        union address address = {0};
        socklen_t size = sizeof(address);
        int type = 0, buffer = SOCKET_SEND_BUFFER, on = 1;
        socklen_t type_size = sizeof(type);

        if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &type_size) < 0 || type != SOCK_STREAM)
                return fail(err, EINVAL, "descriptor %d is no stream socket", fd);
        if (getpeername(fd, &address.sa, &size) < 0)
                return fail_os(err, errno, "cannot tell who is connected");

        /* The kernel cuts it to net.core.wmem_max; less is slower, not wrong. */
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof(buffer));
        switch (address.sa.sa_family) {
        case AF_UNIX:
                name_unix_peer(fd, peer, peer_size);
                *ret_may_sendfile = true;
                return 0;
        case AF_INET:
        case AF_INET6:
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
                setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
                name_tcp_peer(&address, peer, peer_size);
                *ret_may_sendfile = !peer_is_local(&address);
                return 0;
        default: return fail(err, EINVAL, "descriptor %d is neither a unix nor a TCP socket", fd);
        }
}
