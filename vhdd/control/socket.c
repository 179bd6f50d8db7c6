/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/control/socket.h"

#include <grp.h>
#include <pwd.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/cleanup.h"

#define LISTEN_BACKLOG 128
/* A user with more groups than the kernel allows a process. */
#define MAX_GROUPS 65536

int control_group_find(const char *name, gid_t *ret, struct error *err)
{
        const char *wanted = name ? name : CONTROL_GROUP;
        char buffer[16384];
        struct group group, *found = NULL;
        int code = getgrnam_r(wanted, &group, buffer, sizeof(buffer), &found);

        if (!found && name)
                return code ? fail_os(err, code, "cannot look up the group '%s'", name)
                            : fail(err, ENOENT, "there is no group '%s'", name);
        *ret = found ? group.gr_gid : CONTROL_NO_GROUP;
        return 0;
}

static int address_of(const char *path, struct sockaddr_un *ret, struct error *err)
{
        *ret = (struct sockaddr_un){.sun_family = AF_UNIX};
        if (strlen(path) >= sizeof(ret->sun_path))
                return fail(err, ENAMETOOLONG,
                        "a socket's path has at most %zu bytes, and this one has %zu: %s",
                        sizeof(ret->sun_path) - 1, strlen(path), path);
        memcpy(ret->sun_path, path, strlen(path) + 1);
        return 0;
}

int control_socket_connect(const char *path, int *ret, struct error *err)
{
        _cleanup_fd_ int fd = -1;
        struct sockaddr_un address;
        int r = address_of(path, &address, err);

        if (r < 0)
                return r;
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0)
                return fail_os(err, errno, "cannot make a socket");
        if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
                return fail_os(err, errno, "cannot connect to '%s'", path);
        *ret = TAKE_FD(fd);
        return 0;
}

/* What is left of a daemon that died goes; a living one's socket, or a file of another kind, stays. */
static int remove_stale(const char *path, struct error *err)
{
        _cleanup_fd_ int fd = -1;
        struct error ignored = ERROR_INIT;
        struct stat st;

        if (lstat(path, &st) < 0)
                return errno == ENOENT ? 0 : fail_os(err, errno, "cannot look at '%s'", path);
        if (!S_ISSOCK(st.st_mode))
                return fail(err, EEXIST, "'%s' is there already, and is no socket", path);
        if (control_socket_connect(path, &fd, &ignored) == 0)
                return fail(err, EADDRINUSE, "a daemon listens at '%s' already", path);
        if (unlink(path) < 0 && errno != ENOENT)
                return fail_os(err, errno, "cannot remove the old socket '%s'", path);
        return 0;
}

/* Owner and mode are right before listen(): until then nobody can connect. */
static int open_to_group(const char *path, gid_t group, struct error *err)
{
        if (group != CONTROL_NO_GROUP && lchown(path, (uid_t)-1, group) < 0)
                return fail_os(err, errno, "cannot give '%s' to the daemon's group", path);
        if (chmod(path, group == CONTROL_NO_GROUP ? 0600 : 0660) < 0)
                return fail_os(err, errno, "cannot set the mode of '%s'", path);
        return 0;
}

int control_listen(const char *path, gid_t group, int *ret, struct error *err)
{
        _cleanup_fd_ int fd = -1;
        struct sockaddr_un address;
        int r = address_of(path, &address, err);

        if (r == 0)
                r = remove_stale(path, err);
        if (r < 0)
                return r;
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0)
                return fail_os(err, errno, "cannot make a socket");
        if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
                return fail_os(err, errno, "cannot make the control socket '%s'", path);
        r = open_to_group(path, group, err);
        if (r == 0 && listen(fd, LISTEN_BACKLOG) < 0)
                r = fail_os(err, errno, "cannot listen at '%s'", path);
        if (r < 0) {
                unlink(path);
                return r;
        }
        *ret = TAKE_FD(fd);
        return 0;
}

int control_peer(int fd, struct peer *ret, struct error *err)
{
        struct ucred cred;
        socklen_t size = sizeof(cred);

        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &size) < 0)
                return fail_os(err, errno, "cannot tell who connected");
        *ret = (struct peer){.uid = cred.uid, .gid = cred.gid, .pid = cred.pid};
        return 0;
}

static bool has_group(const gid_t *groups, size_t n, gid_t group)
{
        for (size_t i = 0; i < n; i++)
                if (groups[i] == group)
                        return true;
        return false;
}

/* The groups that the process had when it connected; kernels before 4.13 cannot tell. */
static int groups_of_socket(int fd, gid_t group, bool *ret)
{
        _cleanup_free_ gid_t *groups = NULL;
        socklen_t size = 0;

        if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, NULL, &size) < 0 && errno != ERANGE)
                return -errno;
        groups = malloc(size ? size : 1);
        if (!groups)
                return -ENOMEM;
        if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &size) < 0)
                return -errno;
        *ret = has_group(groups, size / sizeof(gid_t), group);
        return 0;
}

/* The groups that the user's account has. */
static bool account_has_group(const struct peer *peer, gid_t group)
{
        _cleanup_free_ gid_t *groups = NULL;
        char buffer[16384];
        struct passwd passwd, *found = NULL;
        int n = 0;

        if (getpwuid_r(peer->uid, &passwd, buffer, sizeof(buffer), &found) != 0 || !found)
                return false;
        getgrouplist(passwd.pw_name, peer->gid, NULL, &n);
        if (n <= 0 || n > MAX_GROUPS)
                return false;
        groups = calloc((size_t)n, sizeof(*groups));
        if (!groups || getgrouplist(passwd.pw_name, peer->gid, groups, &n) < 0)
                return false;
        return has_group(groups, (size_t)n, group);
}

int control_peer_may_speak(int fd, const struct peer *peer, gid_t group, struct error *err)
{
        bool member = group != CONTROL_NO_GROUP && peer->gid == group;

        if (peer->uid == 0 || peer->uid == geteuid() || member)
                return 0;
        if (group == CONTROL_NO_GROUP)
                return fail(err, EACCES,
                        "user %u may not speak to the daemon: only root and the daemon's own user "
                        "may, because there is no group '" CONTROL_GROUP "'",
                        (unsigned)peer->uid);
        if (groups_of_socket(fd, group, &member) < 0)
                member = account_has_group(peer, group);
        if (member)
                return 0;
        return fail(err, EACCES,
                "user %u may not speak to the daemon: only root and members of its group (%u) may",
                (unsigned)peer->uid, (unsigned)group);
}
