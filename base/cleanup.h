/* SPDX-License-Identifier: Apache-2.0 */
/* cleanup.h - clean-up by scope, so that an early return needs no thought.
 *
 * Threads    none: macros only.
 */
#pragma once

#include <dirent.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define _cleanup_(function) __attribute__((cleanup(function)))

/* Makes `functionp(type *)` for _cleanup_ out of `function(type)`; NULL is left alone. */
#define DEFINE_CLEANUP(type, function)                                                             \
        static inline void function##p(type *p)                                                    \
        {                                                                                          \
                if (*p)                                                                            \
                        function(*p);                                                              \
        }

static inline void cleanup_free(void *p)
{
        free(*(void **)p);
}
#define _cleanup_free_ _cleanup_(cleanup_free)

static inline void cleanup_fd(int *fd)
{
        if (*fd >= 0)
                close(*fd);
}
#define _cleanup_fd_ _cleanup_(cleanup_fd)

static inline void cleanup_dir(DIR **dir)
{
        if (*dir)
                closedir(*dir);
}
#define _cleanup_dir_ _cleanup_(cleanup_dir)

static inline void cleanup_stream(FILE **stream)
{
        if (*stream)
                fclose(*stream);
}
#define _cleanup_stream_ _cleanup_(cleanup_stream)

static inline void cleanup_unlock(pthread_mutex_t **mutex)
{
        if (*mutex)
                pthread_mutex_unlock(*mutex);
}

static inline pthread_mutex_t *mutex_lock(pthread_mutex_t *mutex)
{
        pthread_mutex_lock(mutex);
        return mutex;
}
/* Holds @mutex until the end of the scope. */
#define MUTEX_GUARD(mutex)          MUTEX_GUARD_NAMED(mutex, __COUNTER__)
#define MUTEX_GUARD_NAMED(mutex, n) MUTEX_GUARD_NAMED_(mutex, n)
#define MUTEX_GUARD_NAMED_(mutex, n)                                                               \
        pthread_mutex_t *guard_##n _cleanup_(cleanup_unlock) __attribute__((unused)) =             \
                mutex_lock(mutex)

/* The pointer, and the variable forgets it: what the scope would have freed goes to the caller. */
#define TAKE_PTR(p)                                                                                \
        ({                                                                                         \
                __typeof__(p) taken_ = (p);                                                        \
                (p) = NULL;                                                                        \
                taken_;                                                                            \
        })

#define TAKE_FD(fd)                                                                                \
        ({                                                                                         \
                int taken_ = (fd);                                                                 \
                (fd) = -1;                                                                         \
                taken_;                                                                            \
        })
