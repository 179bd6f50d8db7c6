/* SPDX-License-Identifier: Apache-2.0 */
/* command.c - QEMU's command line from a config.
 *
 * Every device has its PCI slot written down: what is saved with them must find them there.
 *
 *      1 piix3 (1.1 the two IDE channels)   2 screen   3 balloon   4-7 the SCSI controllers
 *      8 virtio-serial   9 virtio-mem   a pvpanic   10-17 network cards
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vhdd/control/names.h"
#include "vmm-glue/supervisor/config.h"

#define RECONNECT_S     25 /* below the 30 s after which a guest gives an ATA command up */
#define OPEN_TIMEOUT_S  10 /* at QEMU's start, when no guest waits */
#define SLOT_SCREEN     0x2
#define SLOT_BALLOON    0x3
#define SLOT_SCSI       0x4
#define SLOT_SERIAL     0x8
#define SLOT_MEMORY     0x9
#define SLOT_PANIC      0xa
#define SLOT_NETWORK    0x10
#define SERIAL_IDE_MAX  20 /* bytes of an ATA serial number */
#define SERIAL_SCSI_MAX 36

struct words {
        char **items;
        size_t n, capacity;
        bool failed;
};

static void add(struct words *words, char *text)
{
        if (words->n + 2 > words->capacity) {
                size_t capacity = words->capacity ? words->capacity * 2 : 64;
                char **items = reallocarray(words->items, capacity, sizeof(*items));

                if (!items) {
                        words->failed = true;
                        free(text);
                        return;
                }
                words->items = items;
                words->capacity = capacity;
        }
        if (!text) {
                words->failed = true;
                return;
        }
        words->items[words->n++] = text;
        words->items[words->n] = NULL;
}

static void word(struct words *words, const char *format, ...)
        __attribute__((format(printf, 2, 3)));
static void word(struct words *words, const char *format, ...)
{
        char *text = NULL;
        va_list args;

        va_start(args, format);
        if (vasprintf(&text, format, args) < 0)
                text = NULL;
        va_end(args);
        add(words, text);
}

/* An option and its value. */
#define option(words, name, ...)                                                                   \
        do {                                                                                       \
                add(words, strdup(name));                                                          \
                word(words, __VA_ARGS__);                                                          \
        } while (0)

/* A value as JSON, which needs no quoting of commas. Takes @value over. */
static void option_json(struct words *words, const char *name, json_t *value)
{
        add(words, strdup(name));
        add(words, value ? json_dumps(value, JSON_COMPACT) : NULL);
        json_decref(value);
}

/* A value in QEMU's own syntax: a comma is written twice. */
static void option_text(struct words *words, const char *name, const char *head, const char *text)
{
        size_t n = strlen(head);
        char *value = malloc(n + 2 * strlen(text) + 1), *to = value;

        if (value) {
                memcpy(to, head, n);
                to += n;
                for (; *text; text++) {
                        if (*text == ',')
                                *to++ = ',';
                        *to++ = *text;
                }
                *to = '\0';
        }
        add(words, strdup(name));
        add(words, value);
}

static uint64_t number_of(const json_t *config, const char *name)
{
        return (uint64_t)json_integer_value(json_object_get(config, name));
}

static const char *text_of(const json_t *config, const char *name)
{
        const char *text = json_string_value(json_object_get(config, name));

        return text ? text : "";
}

/* --- disks --- */

json_t *config_blockdev(const json_t *disk, unsigned open_timeout_s)
{
        char node[CONFIG_NODE_MAX];

        config_node(disk, node);
        return json_pack("{s:s, s:s, s:{s:s, s:s}, s:s, s:i, s:i, s:s, s:s, s:b}", "driver", "nbd",
                "node-name", node, "server", "type", "unix", "path", text_of(disk, "socket"),
                "export", text_of(disk, "export"), "reconnect-delay", RECONNECT_S, "open-timeout",
                (int)open_timeout_s, "discard", "unmap", "detect-zeroes", "unmap", "read-only",
                json_is_true(json_object_get(disk, "read-only")));
}

static void serial_of(const json_t *disk, size_t max, char *ret)
{
        size_t n = 0;

        const char *id = text_of(disk, json_object_get(disk, "serial") ? "serial" : "id");

        for (; *id && n < max; id++)
                if (*id != '-')
                        ret[n++] = *id;
        ret[n] = '\0';
}

json_t *config_device(const json_t *disk)
{
        struct control_place place = {0};
        char node[CONFIG_NODE_MAX], serial[SERIAL_SCSI_MAX + 1], bus[16];

        config_node(disk, node);
        if (control_place_parse(text_of(disk, "at"), &place, NULL) < 0)
                return NULL;
        serial_of(disk, place.scsi ? SERIAL_SCSI_MAX : SERIAL_IDE_MAX, serial);
        if (!place.scsi) {
                snprintf(bus, sizeof(bus), "ide.%u", place.controller);
                return json_pack("{s:s, s:s, s:s, s:s, s:i, s:s, s:s, s:s}", "driver", "ide-hd",
                        "id", node, "drive", node, "bus", bus, "unit", (int)place.unit, "serial",
                        serial, "werror", "stop", "rerror", "stop");
        }
        snprintf(bus, sizeof(bus), "scsi%u.0", place.controller);
        return json_pack("{s:s, s:s, s:s, s:s, s:i, s:i, s:s, s:s, s:s, s:s}", "driver", "scsi-hd",
                "id", node, "drive", node, "bus", bus, "scsi-id", (int)place.unit, "lun", 0,
                "serial", serial, "device_id", serial, "werror", "stop", "rerror", "stop");
}

static void add_disks(struct words *words, const json_t *config)
{
        bool from_disk = !json_object_get(config, "kernel");
        json_t *disk;
        size_t i;

        for (unsigned n = 0; n < CONFIG_CONTROLLERS; n++)
                option(words, "-device", "virtio-scsi-pci,id=scsi%u,addr=0x%x", n, SLOT_SCSI + n);
        json_array_foreach(json_object_get(config, "disks"), i, disk)
        {
                json_t *device = config_device(disk);

                if (from_disk && strcmp(text_of(disk, "at"), "ide0:0") == 0)
                        json_object_set_new(device, "bootindex", json_integer(0));
                option_json(words, "-blockdev", config_blockdev(disk, OPEN_TIMEOUT_S));
                option_json(words, "-device", device);
        }
}

/* --- networks --- */

static int add_networks(struct words *words, const json_t *config,
        const struct command_options *options, struct error *err)
{
        size_t used = 0, i;
        json_t *network;

        json_array_foreach(json_object_get(config, "networks"), i, network)
        {
                size_t n_taps = number_of(network, "descriptors"),
                       n_vhost = number_of(network, "vhost");
                char netdev[1024];
                int n;

                if (json_is_null(network)) /* a card was there, and was taken away */
                        continue;
                n = snprintf(
                        netdev, sizeof(netdev), "tap,id=net%zu,%s=", i, n_taps == 1 ? "fd" : "fds");

                if (n_taps == 0 || n_taps > 64 || n_vhost > 64 ||
                        n_taps + n_vhost > options->n_fds - used)
                        return fail(err, EPROTO,
                                "network card %zu was plugged without descriptors for it", i);
                for (size_t k = 0; k < n_taps; k++)
                        n += snprintf(netdev + n, sizeof(netdev) - (size_t)n, "%s%d", k ? ":" : "",
                                options->fds[used++]);
                for (size_t k = 0; k < n_vhost; k++)
                        n += snprintf(netdev + n, sizeof(netdev) - (size_t)n, "%s%d",
                                k                     ? ":"
                                        : n_taps == 1 ? ",vhost=on,vhostfd="
                                                      : ",vhost=on,vhostfds=",
                                options->fds[used++]);
                option(words, "-netdev", "%s", netdev);
                option(words, "-device",
                        "virtio-net-pci,id=nic%zu,netdev=net%zu,mac=%s,mq=%s,vectors=%zu,romfile=,"
                        "addr=0x%zx",
                        i, i, text_of(network, "mac"), n_taps > 1 ? "on" : "off", 2 * n_taps + 2,
                        SLOT_NETWORK + i);
        }
        return 0;
}

/* --- the rest --- */

static void add_machine(struct words *words, const json_t *config)
{
        uint64_t startup = number_of(config, "startup"), max = number_of(config, "max");
        const char *accel = text_of(config, "accel");
        bool kvm = strcmp(accel, "kvm") == 0,
             hyperv = json_is_true(json_object_get(config, "hyperv"));

        option(words, "-machine", "%s", text_of(config, "machine"));
        option(words, "-accel", "%s", accel);
        if (!kvm)
                option(words, "-cpu", "max,la57=off"); /* a level of page tables less to emulate */
        else if (hyperv)
                option(words, "-cpu",
                        "host,hv-relaxed,hv-vapic,hv-spinlocks=0x1fff,hv-vpindex,hv-runtime,hv-time,"
                        "hv-synic,hv-stimer,hv-reset,hv-frequencies,hv-tlbflush,hv-ipi");
        else
                option(words, "-cpu", "host");
        option(words, "-smp", "%" PRIu64, number_of(config, "cpus"));
        if (max > startup)
                option(words, "-m", "size=%" PRIu64 "M,maxmem=%" PRIu64 "M,slots=1", startup >> 20,
                        max >> 20);
        else
                option(words, "-m", "size=%" PRIu64 "M", startup >> 20);
        if (max > startup) {
                option(words, "-object", "memory-backend-ram,id=more,size=%" PRIu64 "M,reserve=off",
                        (max - startup) >> 20);
                option(words, "-device",
                        "virtio-mem-pci,id=vmem,memdev=more,block-size=%" PRIu64
                        "M,requested-size=0,addr=0x%x",
                        CONFIG_MEMORY_UNIT >> 20, SLOT_MEMORY);
        }
        option(words, "-device",
                "virtio-balloon-pci,id=balloon,deflate-on-oom=on,free-page-reporting=on,addr=0x%x",
                SLOT_BALLOON);
        if (kvm && json_is_true(json_object_get(config, "vmbus")))
                option(words, "-device", "vmbus-bridge");
        option(words, "-device", "pvpanic-pci,addr=0x%x", SLOT_PANIC);
        /* A guest that crashed stays as it is, to be looked at; who runs it says what comes then. */
        option(words, "-action", "panic=pause");
}

static void add_screen(struct words *words, const json_t *config, bool has_spice)
{
        const char *display = text_of(config, "display");

        if (strcmp(display, "vnc") == 0) {
                option(words, "-device", "VGA,id=screen,addr=0x%x", SLOT_SCREEN);
                option(words, "-vnc", "unix:vnc.sock");
        } else if (strcmp(display, "spice") == 0 && has_spice) {
                option(words, "-device", "qxl-vga,id=screen,addr=0x%x", SLOT_SCREEN);
                option(words, "-spice", "unix=on,addr=spice.sock,disable-ticketing=on");
        } else {
                option(words, "-display", "none");
        }
}

static void add_kernel(struct words *words, const json_t *config)
{
        if (!json_object_get(config, "kernel"))
                return;
        option(words, "-kernel", "%s", text_of(config, "kernel"));
        if (json_object_get(config, "initrd"))
                option(words, "-initrd", "%s", text_of(config, "initrd"));
        if (json_object_get(config, "append"))
                option(words, "-append", "%s", text_of(config, "append"));
}

static void add_channels(struct words *words)
{
        option(words, "-chardev", "socket,id=qmp,path=qmp.sock,server=on,wait=off");
        option(words, "-mon", "chardev=qmp,mode=control");
        option(words, "-chardev",
                "socket,id=console,path=console.sock,server=on,wait=off,logfile=console.log,"
                "logappend=on");
        option(words, "-serial", "chardev:console");
        option(words, "-device", "virtio-serial-pci,id=serial,max_ports=2,addr=0x%x", SLOT_SERIAL);
        option(words, "-chardev", "socket,id=qga,path=qga.sock,server=on,wait=off");
        option(words, "-device",
                "virtserialport,id=qga,bus=serial.0,nr=1,chardev=qga,name=org.qemu.guest_agent.0");
}

int config_command(
        const json_t *config, const struct command_options *options, char ***ret, struct error *err)
{
        struct words words = {0};
        int r;

        add(&words, strdup(options->program));
        option_text(&words, "-name", "guest=", text_of(config, "vm"));
        word(&words, "-nodefaults");
        word(&words, "-no-user-config");
        /* No shell, no other program, no other user: a guest that breaks in finds less. */
        option(&words, "-sandbox",
                "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        option(&words, "-msg", "timestamp=on");
        word(&words, "-S");
        word(&words, "-no-shutdown");
        add_machine(&words, config);
        add_screen(&words, config, options->has_spice);
        add_channels(&words);
        add_kernel(&words, config);
        add_disks(&words, config);
        r = add_networks(&words, config, options, err);
        if (options->incoming)
                option(&words, "-incoming", "defer");
        if (r == 0 && words.failed)
                r = fail(err, ENOMEM, "no memory for QEMU's command line");
        if (r < 0) {
                command_free(words.items);
                return r;
        }
        *ret = words.items;
        return 0;
}

char **command_free(char **argv)
{
        for (size_t i = 0; argv && argv[i]; i++)
                free(argv[i]);
        free(argv);
        return NULL;
}
