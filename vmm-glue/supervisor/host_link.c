/* SPDX-License-Identifier: Apache-2.0 */
/* host_link.c - vmm-host connects here: one at a time, the newest counts. */
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "vmm-glue/log.h"
#include "vmm-glue/supervisor/internal.h"

static json_t *state_of(struct supervisor *supervisor)
{
        return json_pack("{s:s, s:b, s:b}", "vm", supervisor->id, "on", 0, "running", 0);
}

void host_link_tell_state(struct supervisor *supervisor)
{
        if (supervisor->link)
                link_note(supervisor->link, "state", state_of(supervisor));
}

static void end(struct supervisor *supervisor, const json_t *message)
{
        supervisor->is_ending = true;
        sd_event_exit(supervisor->event, 0);
}

static void on_request(void *opaque, struct link *link, json_int_t id, const char *verb,
        const json_t *message, int *fds, size_t n_fds)
{
        struct supervisor *supervisor = opaque;
        struct error err = ERROR_INIT;

        for (size_t i = 0; i < n_fds; i++)
                close(fds[i]);
        if (strcmp(verb, "hello") == 0) {
                link_answer(link, id, state_of(supervisor), NULL, 0);
        } else if (strcmp(verb, "end") == 0) {
                link_answer(link, id, NULL, NULL, 0);
                end(supervisor, message);
        } else {
                fail(&err, ENOSYS, "a supervisor does not know '%.64s'", verb);
                link_refuse(link, id, &err);
        }
}

static void on_gone(void *opaque, struct link *link)
{
        struct supervisor *supervisor = opaque;

        supervisor->link = link_free(link);
}

static int on_connect(sd_event_source *source, int listen_fd, uint32_t revents, void *opaque)
{
        struct supervisor *supervisor = opaque;
        const struct link_callbacks callbacks = {
                .request = on_request, .gone = on_gone, .opaque = supervisor};
        int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        struct error err = ERROR_INIT;

        if (fd < 0)
                return 0;
        supervisor->link = link_free(supervisor->link);
        if (link_new(supervisor->event, fd, &callbacks, &supervisor->link, &err) < 0) {
                log_error(&err);
                close(fd);
        }
        return 0;
}

int host_link_start(struct supervisor *supervisor, struct error *err)
{
        _cleanup_free_ char *path = NULL;
        int r = vm_path(&supervisor->options, supervisor->id, "supervisor.sock", &path, err);

        if (r == 0)
                r = link_listen(path, &supervisor->listen_fd, err);
        if (r < 0)
                return r;
        r = sd_event_add_io(supervisor->event, &supervisor->listen, supervisor->listen_fd, EPOLLIN,
                on_connect, supervisor);
        return r < 0 ? fail_os(err, -r, "cannot watch '%s'", path) : 0;
}
