/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/crash/driver.h"

#include <assert.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/mutant.h"
#include "tests/crash/random.h"
#include "tests/crash/schedule.h"

#define MAX_JOBS 16u

struct driver_options driver_options = {
        .first_seed = 1, .last_seed = 200, .budget = 250, .jobs = 2};
struct driver_result *driver_result;
bool driver_mutants_on;

static const struct driver *driver;

bool mutant_is(const char *name)
{
        if (!driver->at_step || !driver->at_step(name))
                schedule_point();
        return driver_mutants_on && driver_options.mutant &&
                strcmp(driver_options.mutant, name) == 0;
}

static double now_seconds(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

bool driver_set_add(struct driver_set *set, uint64_t key)
{
        uint64_t at;

        key |= 1;
        if (2 * set->n >= set->room) {
                struct driver_set old = *set;

                set->room = old.room ? 2 * old.room : 4096;
                set->n = 0;
                set->keys = calloc(set->room, sizeof(uint64_t));
                assert(set->keys != NULL);
                for (uint64_t i = 0; i < old.room; i++)
                        if (old.keys[i])
                                driver_set_add(set, old.keys[i]);
                free(old.keys);
        }
        for (at = random_mix(key) % set->room; set->keys[at]; at = (at + 1) % set->room)
                if (set->keys[at] == key)
                        return false;
        set->keys[at] = key;
        set->n++;
        return true;
}

void driver_set_done(struct driver_set *set)
{
        free(set->keys);
        *set = (struct driver_set){0};
}

void driver_violation(const char *format, ...)
{
        va_list list;

        if (driver_result->violated)
                return;
        driver_result->violated = true;
        va_start(list, format);
        vsnprintf(driver_result->text, sizeof(driver_result->text), format, list);
        va_end(list);
}

static void on_deadlock(void)
{
        driver_violation("the engine waits for ever");
        _exit(4);
}

/* ---- jobs and mutants ---- */

static void job_main(unsigned job, double until)
{
        schedule_on_deadlock = on_deadlock;
        schedule_on_one_processor(job);
        for (uint64_t seed = driver_options.first_seed + job; seed <= driver_options.last_seed;
                seed += driver_options.jobs) {
                driver_result->seed = seed;
                driver->run_seed(seed);
                if (driver_result->violated)
                        _exit(1);
                driver_result->seeds++;
                if (until > 0 && now_seconds() > until)
                        break;
                if (driver_options.states &&
                        driver_result->states * driver_options.jobs >= driver_options.states)
                        break;
        }
        fflush(NULL);
        exit(0);
}

/* The first violation ends them all. */
static bool run_jobs(struct driver_result *results, bool quiet)
{
        double until = driver_options.seconds > 0 ? now_seconds() + driver_options.seconds : 0;
        pid_t pids[MAX_JOBS];
        bool good = true;

        memset(results, 0, MAX_JOBS * sizeof(*results));
        fflush(NULL);
        for (unsigned i = 0; i < driver_options.jobs; i++) {
                pids[i] = fork();
                if (pids[i] == 0) {
                        driver_result = &results[i];
                        if (quiet && !driver_options.trace && !freopen("/dev/null", "w", stderr))
                                _exit(3);
                        job_main(i, until);
                }
        }
        for (unsigned left = driver_options.jobs; left > 0; left--) {
                int status;
                pid_t pid = wait(&status);

                for (unsigned i = 0; i < driver_options.jobs; i++) {
                        if (pids[i] != pid)
                                continue;
                        pids[i] = -1;
                        if (!good || (WIFEXITED(status) && WEXITSTATUS(status) == 0))
                                continue;
                        good = false;
                        if (!results[i].violated)
                                snprintf(results[i].text, sizeof(results[i].text),
                                        "the engine crashes: %s",
                                        WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : "exit");
                        results[i].violated = true;
                        for (unsigned k = 0; k < driver_options.jobs; k++)
                                if (pids[k] > 0)
                                        kill(pids[k], SIGKILL);
                }
        }
        return good;
}

static struct driver_result *new_results(void)
{
        void *memory = mmap(NULL, MAX_JOBS * sizeof(struct driver_result), PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_ANONYMOUS, -1, 0);

        assert(memory != MAP_FAILED);
        return memory;
}

static struct driver_result sum_of(const struct driver_result *results)
{
        struct driver_result sum = {0};

        for (unsigned i = 0; i < driver_options.jobs; i++) {
                sum.seeds += results[i].seeds;
                sum.states += results[i].states;
                sum.instants += results[i].instants;
                sum.counters[0] += results[i].counters[0];
                sum.counters[1] += results[i].counters[1];
                if (results[i].violated && !sum.violated) {
                        sum.violated = true;
                        sum.seed = results[i].seed;
                        memcpy(sum.text, results[i].text, sizeof(sum.text));
                }
        }
        return sum;
}

static int enumerate(void)
{
        struct driver_result *results = new_results(), sum;
        double start = now_seconds();
        bool good = run_jobs(results, false);

        sum = sum_of(results);
        if (!good)
                fprintf(stderr,
                        "violation: seed %" PRIu64 ": %s\nagain: %s --seeds %" PRIu64
                        " --budget %" PRIu64 " --trace\n",
                        sum.seed, sum.text, driver->name, sum.seed, driver_options.budget);
        printf("summary: %s: %" PRIu64 " distinct states at %" PRIu64 " instants of %" PRIu64
               " seeds (%s: %" PRIu64 ", %s: %" PRIu64 ") in %.0f s: %s\n",
                driver->name, sum.states, sum.instants, sum.seeds, driver->counters[0],
                sum.counters[0], driver->counters[1], sum.counters[1], now_seconds() - start,
                good ? "no violation" : "VIOLATED");
        if (good && sum.states < driver_options.states) {
                fprintf(stderr, "%s: %" PRIu64 " states are fewer than %" PRIu64 "\n", driver->name,
                        sum.states, driver_options.states);
                return 1;
        }
        return good ? 0 : 1;
}

static int hunt(const char *name, const char *what)
{
        struct driver_result *results = new_results(), sum;
        double start = now_seconds();
        bool good;

        driver_options.mutant = name;
        good = run_jobs(results, true);
        sum = sum_of(results);
        if (good)
                printf("mutant %s: NOT SEEN after %" PRIu64 " states of %" PRIu64
                       " seeds, %.1f s (%s)\n",
                        name, sum.states, sum.seeds, now_seconds() - start, what);
        else
                printf("mutant %s: seen at seed %" PRIu64 " after %" PRIu64 " states, %.1f s: %s\n",
                        name, sum.seed, sum.states, now_seconds() - start, sum.text);
        fflush(stdout);
        munmap(results, MAX_JOBS * sizeof(*results));
        return good ? 1 : 0;
}

static int hunt_all(void)
{
        unsigned missed = 0;

        for (unsigned i = 0; i < driver->n_mutants; i++)
                missed += (unsigned)hunt(driver->mutants[i].name, driver->mutants[i].what);
        printf("summary: %u of %u mutants of %s seen\n", driver->n_mutants - missed,
                driver->n_mutants, driver->name);
        return missed ? 1 : 0;
}

/* ---- the command line ---- */

static bool parse_value(const char *name, const char *value)
{
        char *end;

        if (strcmp(name, "--mutant") == 0) {
                driver_options.mutant = value;
                return true;
        }
        if (strcmp(name, "--seconds") == 0) {
                driver_options.seconds = strtod(value, &end);
        } else if (strcmp(name, "--seeds") == 0) {
                driver_options.first_seed = driver_options.last_seed = strtoull(value, &end, 0);
                if (*end == '-')
                        driver_options.last_seed = strtoull(end + 1, &end, 0);
                if (driver_options.first_seed == driver_options.last_seed)
                        driver_options.jobs = 1;
        } else if (strcmp(name, "--states") == 0) {
                driver_options.states = strtoull(value, &end, 0);
        } else if (strcmp(name, "--budget") == 0) {
                driver_options.budget = strtoull(value, &end, 0);
        } else if (strcmp(name, "--jobs") == 0) {
                driver_options.jobs = (unsigned)strtoul(value, &end, 0);
        } else {
                return false;
        }
        return *end == '\0' && driver_options.jobs >= 1 && driver_options.jobs <= MAX_JOBS;
}

int driver_main(int argc, char **argv, const struct driver *of)
{
        driver = of;
        for (int i = 1; i < argc; i++) {
                if (strcmp(argv[i], "--trace") == 0)
                        driver_options.trace = true;
                else if (strcmp(argv[i], "--all-mutants") == 0)
                        driver_options.all_mutants = true;
                else if (i + 1 < argc && parse_value(argv[i], argv[i + 1]))
                        i++;
                else {
                        fprintf(stderr,
                                "usage: %s [--seeds FIRST[-LAST]] [--states N] "
                                "[--budget N] [--seconds N] [--jobs N] [--mutant NAME] "
                                "[--all-mutants] [--trace]\n",
                                driver->name);
                        return 2;
                }
        }
        if (getenv("VHDD_LONG") && !driver_options.mutant && !driver_options.all_mutants &&
                driver_options.last_seed > driver_options.first_seed) {
                driver_options.states = MAX_OF(driver_options.states, UINT64_C(500000));
                driver_options.budget = MAX_OF(driver_options.budget, UINT64_C(1500));
                driver_options.last_seed = UINT64_MAX / 2;
        }
        if (driver_options.all_mutants)
                return hunt_all();
        if (driver_options.mutant)
                return hunt(driver_options.mutant, "");
        return enumerate();
}
