/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/snippet.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/quote.h"
#include "base/uuid.h"

/* The guest hangs, instead of seeing an error, for as long as a worker needs to come back; below the
 * 30 s after which an ATA driver gives up by itself. */
#define RECONNECT_SECONDS 25

/* HOST and PORT of "HOST:PORT" or "[HOST]:PORT". */
static void split_address(
        const char *address, char *host, size_t size, char *port, size_t port_size)
{
        const char *colon = strrchr(address, ':');
        size_t length = colon ? (size_t)(colon - address) : strlen(address);

        if (length >= 2 && address[0] == '[' && address[length - 1] == ']') {
                address++;
                length -= 2;
        }
        snprintf(host, size, "%.*s", (int)length, address);
        snprintf(port, port_size, "%s", colon ? colon + 1 : "10809");
}

static json_t *server_of(const struct snippet *snippet)
{
        char host[256], port[16];

        if (snippet->socket)
                return json_pack("{s:s, s:s}", "type", "unix", "path", snippet->socket);
        split_address(snippet->address ? snippet->address : "localhost:10809", host, sizeof(host),
                port, sizeof(port));
        return json_pack("{s:s, s:s, s:s}", "type", "inet", "host", host, "port", port);
}

static char *device_of(const struct snippet *snippet, const char *serial)
{
        struct place place = snippet->place;
        char *text = NULL;
        int r;

        if (place.controller == CONTROLLER_IDE)
                r = asprintf(&text, "-device ide-hd,drive=d%s,bus=ide.%d,unit=%d,serial=%s,%s",
                        serial, place.bus, place.unit, serial, "werror=stop,rerror=stop");
        else
                r = asprintf(&text,
                        "-device virtio-scsi-pci,id=scsi%d \\\n"
                        "-device scsi-hd,drive=d%s,bus=scsi%d.0,scsi-id=%d,lun=0,serial=%s,%s",
                        place.bus, serial, place.bus, place.unit, serial,
                        "werror=stop,rerror=stop");
        return r < 0 ? NULL : text;
}

/* -blockdev of the nbd driver on top of nothing: a format layer would change nothing. */
static char *qemu_text(const struct snippet *snippet, const char *serial)
{
        _cleanup_free_ char *device = device_of(snippet, serial), *json = NULL;
        char node[32], quoted[QUOTE_TEXT_MAX];
        json_t *blockdev;
        char *text = NULL;

        snprintf(node, sizeof(node), "d%s", serial);
        blockdev = json_pack("{s:s, s:s, s:o, s:s, s:i, s:i, s:s, s:b}", "driver", "nbd",
                "node-name", node, "server", server_of(snippet), "export", snippet->export,
                "reconnect-delay", RECONNECT_SECONDS, "open-timeout", 10, "discard", "unmap",
                "read-only", snippet->read_only);
        json = blockdev ? json_dumps(blockdev, JSON_COMPACT) : NULL;
        json_decref(blockdev);
        if (!json || !device)
                return NULL;
        shell_quote(json, quoted, sizeof(quoted));
        if (asprintf(&text, "-blockdev %s \\\n%s\n", quoted, device) < 0)
                return NULL;
        return text;
}

/* @text inside an attribute in single quotes. */
static char *xml_escape(const char *text)
{
        char *ret = malloc(6 * strlen(text) + 1), *out = ret;

        if (!ret)
                return NULL;
        for (; *text; text++)
                switch (*text) {
                case '&': out = stpcpy(out, "&amp;"); break;
                case '<': out = stpcpy(out, "&lt;"); break;
                case '>': out = stpcpy(out, "&gt;"); break;
                case '\'': out = stpcpy(out, "&apos;"); break;
                default: *out++ = *text; break;
                }
        *out = '\0';
        return ret;
}

static char *libvirt_host(const struct snippet *snippet)
{
        _cleanup_free_ char *escaped = NULL;
        char host[256], port[16];
        char *text = NULL;

        if (snippet->socket) {
                escaped = xml_escape(snippet->socket);
                return escaped &&
                                asprintf(&text, "<host transport='unix' socket='%s'/>", escaped) >=
                                        0
                        ? text
                        : NULL;
        }
        split_address(snippet->address ? snippet->address : "localhost:10809", host, sizeof(host),
                port, sizeof(port));
        return asprintf(&text, "<host name='%s' port='%s'/>", host, port) < 0 ? NULL : text;
}

static char *libvirt_text(const struct snippet *snippet, const char *serial)
{
        _cleanup_free_ char *export = xml_escape(snippet->export), *host = libvirt_host(snippet);
        bool ide = snippet->place.controller == CONTROLLER_IDE;
        int n = ide ? snippet->place.bus * 2 + snippet->place.unit
                    : snippet->place.bus * PLACE_SCSI_UNITS + snippet->place.unit;
        char dev[16];
        char *text = NULL;

        if (!export || !host)
                return NULL;
        /* sda .. sdz, sdaa ..: as libvirt wants its targets named. */
        if (n < 26)
                snprintf(dev, sizeof(dev), "%cd%c", ide ? 'h' : 's', 'a' + n);
        else
                snprintf(dev, sizeof(dev), "sd%c%c", 'a' + n / 26 - 1, 'a' + n % 26);
        if (asprintf(&text,
                    "<disk type='network' device='disk'>\n"
                    "  <driver name='qemu' type='raw' error_policy='stop' rerror_policy='stop' "
                    "discard='unmap'/>\n"
                    "  <source protocol='nbd' name='%s'>\n"
                    "    %s\n"
                    "    <reconnect delay='%d'/>\n"
                    "  </source>\n"
                    "  <target dev='%s' bus='%s'/>\n"
                    "%s"
                    "  <serial>%s</serial>\n"
                    "  <address type='drive' controller='%d' bus='%d' target='%d' unit='%d'/>\n"
                    "</disk>\n",
                    export, host, RECONNECT_SECONDS, dev, ide ? "ide" : "scsi",
                    snippet->read_only ? "  <readonly/>\n" : "", serial,
                    ide ? 0 : snippet->place.bus, ide ? snippet->place.bus : 0,
                    ide ? 0 : snippet->place.unit, ide ? snippet->place.unit : 0) < 0)
                return NULL;
        return text;
}

/* virt-v2v takes a disk of any kind that QEMU opens. */
static char *virt_v2v_text(const struct snippet *snippet)
{
        char quoted[QUOTE_TEXT_MAX];
        char *text = NULL;

        shell_quote(snippet->uri, quoted, sizeof(quoted));
        if (asprintf(&text, "virt-v2v -i disk %s -o local -os DIRECTORY\n", quoted) < 0)
                return NULL;
        return text;
}

char *snippet_text(const struct snippet *snippet)
{
        char serial[21];
        size_t n = 0;

        /* SCSI and ATA serial numbers have 20 characters. */
        for (const char *p = snippet->id; *p && n < sizeof(serial) - 1; p++)
                if (*p != '-')
                        serial[n++] = *p;
        serial[n] = '\0';
        if (strcmp(snippet->kind, "qemu") == 0)
                return qemu_text(snippet, serial);
        if (strcmp(snippet->kind, "libvirt") == 0)
                return libvirt_text(snippet, serial);
        return virt_v2v_text(snippet);
}
