/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/ctl/progress.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/size.h"

#define BAR_PERIOD_NS  INT64_C(100000000)
#define LINE_PERIOD_NS INT64_C(1000000000)

struct progress {
        /* immutable after progress_new */
        enum ctl_progress mode; /* bar, json or none */
        const char *what;
        uint64_t total;
        int64_t begun_ns;
        /* guarded by lock */
        pthread_mutex_t lock;
        uint64_t done;
        int64_t shown_ns;
};

static int64_t now_ns(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec;
}

static unsigned terminal_width(void)
{
        struct winsize size;

        if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col >= 20)
                return size.ws_col;
        return 80;
}

static double percent_of(const struct progress *progress)
{
        return progress->total ? 100.0 * (double)progress->done / (double)progress->total : 100.0;
}

/* "1:05", "2:10:00", or nothing while nobody can tell. */
static void time_left(const struct progress *progress, int64_t now, char *buf, size_t size)
{
        double elapsed = (double)(now - progress->begun_ns) / 1e9;
        uint64_t left;

        buf[0] = '\0';
        if (elapsed < 2 || progress->done == 0 || progress->done >= progress->total)
                return;
        left = (uint64_t)(elapsed * (double)(progress->total - progress->done) /
                (double)progress->done);
        if (left >= 3600)
                snprintf(buf, size, "  %" PRIu64 ":%02u:%02u left", left / 3600,
                        (unsigned)(left / 60 % 60), (unsigned)(left % 60));
        else
                snprintf(buf, size, "  %u:%02u left", (unsigned)(left / 60), (unsigned)(left % 60));
}

static void draw_bar(const struct progress *progress, int64_t now)
{
        char done[SIZE_TEXT_MAX], total[SIZE_TEXT_MAX], left[40], tail[160], bar[256];
        unsigned width = terminal_width(), head = (unsigned)strlen(progress->what);
        unsigned room, full;

        time_left(progress, now, left, sizeof(left));
        snprintf(tail, sizeof(tail), " %3.0f%%  %s of %s%s", percent_of(progress),
                size_to_text(progress->done, done), size_to_text(progress->total, total), left);
        room = width > head + strlen(tail) + 6 ? width - head - (unsigned)strlen(tail) - 4 : 0;
        if (room > 50)
                room = 50;
        full = (unsigned)(percent_of(progress) / 100.0 * room);
        memset(bar, ' ', room);
        memset(bar, '#', full < room ? full : room);
        bar[room] = '\0';
        fprintf(stderr, "\r%s [%s]%s\033[K", progress->what, bar, tail);
        fflush(stderr);
}

static void write_line(const struct progress *progress)
{
        fprintf(stderr,
                "{\"progress\":{\"done\":%" PRIu64 ",\"total\":%" PRIu64 ",\"percent\":%.1f}}\n",
                progress->done, progress->total, percent_of(progress));
        fflush(stderr);
}

static void show(struct progress *progress, int64_t now)
{
        progress->shown_ns = now;
        if (progress->mode == CTL_PROGRESS_BAR)
                draw_bar(progress, now);
        else if (progress->mode == CTL_PROGRESS_JSON)
                write_line(progress);
}

struct progress *progress_new(const struct ctl *ctl, const char *what, uint64_t total)
{
        struct progress *progress = calloc(1, sizeof(*progress));

        if (!progress) {
                fprintf(stderr, "vhdctl: no memory\n");
                exit(CTL_FAILED);
        }
        progress->mode = ctl->progress;
        if (progress->mode == CTL_PROGRESS_AUTO)
                progress->mode =
                        isatty(STDERR_FILENO) && !ctl->quiet ? CTL_PROGRESS_BAR : CTL_PROGRESS_NONE;
        progress->what = what;
        progress->total = total;
        progress->begun_ns = progress->shown_ns = now_ns();
        pthread_mutex_init(&progress->lock, NULL);
        return progress;
}

void progress_add(struct progress *progress, uint64_t done)
{
        int64_t now;

        if (progress->mode == CTL_PROGRESS_NONE)
                return;
        MUTEX_GUARD(&progress->lock);
        progress->done += done;
        now = now_ns();
        if (now - progress->shown_ns >=
                (progress->mode == CTL_PROGRESS_BAR ? BAR_PERIOD_NS : LINE_PERIOD_NS))
                show(progress, now);
}

void progress_end(struct progress *progress, bool finished)
{
        if (finished) {
                progress->done = progress->total;
                show(progress, now_ns());
                if (progress->mode == CTL_PROGRESS_BAR)
                        fputc('\n', stderr);
        } else if (progress->mode == CTL_PROGRESS_BAR) {
                fputs("\r\033[K", stderr);
        }
        fflush(stderr);
        pthread_mutex_destroy(&progress->lock);
        free(progress);
}
