/* The first process of a microVM: mounts what a kernel needs, loads the modules, then does what the host
 * says over the virtio-serial port "agent". Frames and calls: ../protocol.py, which documents them.
 *
 * One thread, one poll(2) loop; nothing in the loop waits for a container. It decides nothing: which mounts,
 * names and limits there are is the host's business. All its memory for input and output is bounded by the
 * windows of the protocol. musl has no kernel headers: the few numbers of include/uapi that are needed are
 * written down here.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { VERSION = 1, CALL = 1, OK, ERROR, DATA, END, WINDOW, EXIT, READY };
enum {
    HEADER = 12,
    MAX_CALL = 4 << 20,
    MAX_DATA = 32 << 10,
    OUT_WINDOW = 256 << 10,
    IN_WINDOW = 64 << 10,
    MAX_ANSWER = 1 << 20,
    MAX_READ = 64 << 10,
    ENOUGH = 512 << 10, /* output waiting for the host: no process is read meanwhile */
    CAPS = 41,
};

#define CGROUPS "/sys/fs/cgroup"
#define RNDADDENTROPY _IOW('R', 0x03, int[2])
#define RNDRESEEDCRNG _IO('R', 0x07)
#define RESOLVE_NO_MAGICLINKS 0x02
#define RESOLVE_IN_ROOT 0x10
#define MODULES "/modules"

#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif

struct open_how {
    uint64_t flags, mode, resolve;
};

/* ---- bytes that grow ---- */

struct buffer {
    char *data;
    size_t begin, end, room;
};

static void die(const char *what) {
    dprintf(2, "agent: %s: %s\n", what, strerror(errno));
    sync();
    reboot(RB_AUTOBOOT);
    _exit(1);
}

static size_t held(const struct buffer *b) { return b->end - b->begin; }

/* Room for that many bytes more. The host bounds what is asked for; without memory there is no going on. */
static char *reserve(struct buffer *b, size_t more) {
    if (b->begin == b->end) b->begin = b->end = 0;
    if (b->room - b->end < more) {
        memmove(b->data, b->data + b->begin, held(b));
        b->end -= b->begin;
        b->begin = 0;
        if (b->room - b->end < more) {
            b->room = b->end + more + (b->room >> 1);
            if (!(b->data = realloc(b->data, b->room))) die("no memory");
        }
    }
    return b->data + b->end;
}

static void add(struct buffer *b, const void *data, size_t length) {
    memcpy(reserve(b, length), data, length);
    b->end += length;
}

static void release(struct buffer *b) {
    free(b->data);
    memset(b, 0, sizeof *b);
}

/* ---- frames ---- */

static struct buffer outgoing;

static void put_header(struct buffer *b, uint32_t length, int type, int stream, uint32_t id) {
    uint8_t head[HEADER] = {length, length >> 8, length >> 16, length >> 24, type,     stream,
                            0,      0,           id,           id >> 8,      id >> 16, id >> 24};
    add(b, head, HEADER);
}

static void send_frame(int type, int stream, uint32_t id, const void *data, uint32_t length) {
    put_header(&outgoing, length, type, stream, id);
    add(&outgoing, data, length);
}

static void put_field(struct buffer *b, const char *key, const void *value, uint32_t length) {
    uint8_t size[4] = {length, length >> 8, length >> 16, length >> 24};
    if (held(b) + strlen(key) + length + 16 > MAX_ANSWER) return; /* what the host would refuse */
    add(b, key, strlen(key) + 1);
    add(b, size, 4);
    add(b, value, length);
    add(b, "", 1);
}

static void put_number(struct buffer *b, const char *key, long number) {
    char text[24];
    put_field(b, key, text, sprintf(text, "%ld", number));
}

/* A call as it came: its fields lie in the frame, each value followed by a NUL. */
struct call {
    uint32_t id;
    const char *data, *end;
};

/* The next field at *at; 0 after the last. */
static const char *next_field(const struct call *call, const char **at, const char **value,
                              uint32_t *length) {
    const char *key = *at, *zero;
    if (key >= call->end || !(zero = memchr(key, 0, call->end - key)) || call->end - zero < 6) return 0;
    memcpy(length, zero + 1, 4);
    if (*length > (size_t)(call->end - zero - 6)) return 0;
    *value = zero + 5;
    *at = *value + *length + 1;
    return key;
}

static const char *field(const struct call *call, const char *name, uint32_t *size) {
    const char *at = call->data, *key, *value;
    uint32_t length;
    while ((key = next_field(call, &at, &value, &length)))
        if (!strcmp(key, name)) {
            if (size) *size = length;
            return value;
        }
    return 0;
}

static const char *text(const struct call *call, const char *name) {
    const char *value = field(call, name, 0);
    return value ? value : "";
}

static long number(const struct call *call, const char *name) { return strtol(text(call, name), 0, 10); }

static int times(const struct call *call, const char *name) {
    const char *at = call->data, *key, *value;
    uint32_t length;
    int count = 0;
    while ((key = next_field(call, &at, &value, &length))) count += !strcmp(key, name);
    return count;
}

/* All values of that name, as a list for execve(2); one place more is left free. */
static const char **list(const struct call *call, const char *name) {
    const char *at = call->data, *key, *value, **found = calloc(times(call, name) + 2, sizeof *found);
    uint32_t length;
    int count = 0;
    if (!found) die("no memory");
    while ((key = next_field(call, &at, &value, &length)))
        if (!strcmp(key, name)) found[count++] = value;
    return found;
}

/* Parts of one value, divided by NUL; "" where there is none. */
static void parts(const char *value, uint32_t length, const char **into, int count) {
    const char *end = value + length;
    for (int i = 0; i < count; i++) {
        into[i] = value < end ? value : "";
        if (value < end) value += strlen(value) + 1;
    }
}

static void answer(uint32_t id, const struct buffer *fields) {
    if (id) send_frame(OK, 0, id, fields ? fields->data + fields->begin : "", fields ? held(fields) : 0);
}

static void refuse(uint32_t id, int number, const char *step, const char *message) {
    struct buffer b = {0};
    put_number(&b, "errno", number);
    put_field(&b, "step", step, strlen(step));
    put_field(&b, "message", message, strlen(message));
    if (id) send_frame(ERROR, 0, id, b.data, held(&b));
    release(&b);
}

static void refuse_errno(uint32_t id, const char *step, const char *subject) {
    char message[512];
    int number = errno;
    snprintf(message, sizeof message, "%s%s%s", subject, *subject ? ": " : "", strerror(number));
    refuse(id, number, step, message);
}

/* The answer of a call that is one system call. */
static void report(const struct call *call, int failed, const char *subject) {
    if (failed) return refuse_errno(call->id, text(call, "call"), subject);
    answer(call->id, 0);
}

/* ---- processes ---- */

struct process {
    struct process *next;
    uint32_t id, call; /* call: the one that is still to be answered */
    pid_t pid;
    int told; /* our end of the socket on which the new process tells how far it came, or -1 */
    enum { MAKING, WAITING, STARTING } stage; /* exec has no other than the last */
    int exited, master;
    int fd[3]; /* stdin's, stdout's, stderr's end here; of a terminal the same one for 0 and 1 */
    uint32_t credit[3];
    struct buffer input;
    int input_ends;
    int first; /* of its container */
    char container[256];
};

static struct process *processes;
static int port = -1;

/* What a new process tells. kind: 'p' its pid, 't' its terminal's master comes along, 'r' ready for start,
 * 'e' an error. */
struct word {
    int kind, number;
    char step[32], message[256];
};

static struct process *find(uint32_t id) {
    struct process *p = processes;
    while (p && p->id != id) p = p->next;
    return p;
}

static struct process *first_of(const char *container) {
    struct process *found = 0; /* new ones come to the front: the last is the container's first */
    for (struct process *p = processes; p; p = p->next)
        if (!strcmp(p->container, container) && p->first && !p->exited) found = p;
    return found;
}

static void shut(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

static void end_stream(struct process *p, int stream) {
    if (p->fd[stream] < 0) return;
    if (p->master) {
        if (!stream) return;
        p->fd[0] = -1;
    }
    shut(&p->fd[stream]);
    send_frame(END, stream, p->id, "", 0);
    if (!stream) release(&p->input);
}

static void forget(struct process *p) {
    struct process **link = &processes;
    while (*link != p) link = &(*link)->next;
    *link = p->next;
    if (!p->master) shut(&p->fd[0]);
    for (int i = 1; i < 3; i++) shut(&p->fd[i]);
    shut(&p->told);
    release(&p->input);
    free(p);
}

static void nonblocking(int fd) { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); }

/* ---- files of the guest, as the host asks ---- */

static int make_parents(char *path) {
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        int failed = mkdir(path, 0755) && errno != EEXIST;
        *slash = '/';
        if (failed) return -1;
    }
    return 0;
}

static int put_file(const char *path, const char *data, size_t length, int flags, mode_t mode) {
    int fd = open(path, O_WRONLY | O_CLOEXEC | flags, mode);
    if (fd < 0) return -1;
    while (length) {
        ssize_t done = write(fd, data, length);
        if (done < 0) {
            int number = errno;
            close(fd);
            errno = number;
            return -1;
        }
        data += done;
        length -= done;
    }
    return close(fd);
}

static int put_text(const char *path, const char *data) { return put_file(path, data, strlen(data), 0, 0); }

static ssize_t get_file(const char *path, char *into, size_t room) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), number;
    if (fd < 0) return -1;
    ssize_t count, total = 0;
    while ((count = read(fd, into + total, room - total)) > 0) total += count;
    number = errno;
    close(fd);
    errno = number;
    return count < 0 ? -1 : total;
}

/* ---- the life of a container's process, from clone to execve ---- */

static int told_fd; /* the new process's end */

static void tell(int kind, int number, const char *step, const char *message, int fd) {
    struct word word = {.kind = kind, .number = number};
    snprintf(word.step, sizeof word.step, "%s", step);
    snprintf(word.message, sizeof word.message, "%s", message);
    struct iovec vector = {&word, sizeof word};
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof fd)];
    } control = {0};
    struct msghdr message_head = {.msg_iov = &vector, .msg_iovlen = 1};
    if (fd >= 0) {
        message_head.msg_control = &control;
        message_head.msg_controllen = sizeof control;
        control.head.cmsg_level = SOL_SOCKET;
        control.head.cmsg_type = SCM_RIGHTS;
        control.head.cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(&control.head), &fd, sizeof fd);
    }
    while (sendmsg(told_fd, &message_head, MSG_NOSIGNAL) < 0 && errno == EINTR) {
    }
}

static void fail_with(int number, const char *step, const char *message) {
    tell('e', number, step, message, -1);
    _exit(1);
}

static void fail(const char *step, const char *subject) {
    char message[256];
    int number = errno;
    snprintf(message, sizeof message, "%.200s%s%s", subject, *subject ? ": " : "", strerror(number));
    fail_with(number, step, message);
}

/* A path of the container's root, which is the image's to fill: no link of it leads out (openat2(2)). */
static int open_inside(int root, const char *path, int flags, mode_t mode) {
    struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
    if (flags & O_CREAT) how.mode = mode;
    while (*path == '/') path++;
    int fd;
    do fd = syscall(SYS_openat2, root, *path ? path : ".", &how, sizeof how);
    while (fd < 0 && errno == EAGAIN); /* something was renamed meanwhile */
    return fd;
}

/* The directory of that path inside, made with its parents where it is missing. Links are followed within,
 * also those to what is missing, as runc does it. */
static int make_directory(int root, const char *path, mode_t mode, int links) {
    char copy[PATH_MAX], link[PATH_MAX], target[PATH_MAX];
    int fd = open_inside(root, path, O_PATH | O_DIRECTORY, 0);
    if (fd >= 0 || errno != ENOENT) return fd;
    snprintf(copy, sizeof copy, "%s", path);
    size_t length = strlen(copy);
    while (length && copy[length - 1] == '/') copy[--length] = 0;
    char *name = strrchr(copy, '/');
    if (name) *name++ = 0;
    int parent = name ? make_directory(root, copy, 0755, links) : dup(root);
    if (parent < 0) return -1;
    if (!name) name = copy;
    int made = !mkdirat(parent, name, mode), number = errno;
    ssize_t size = made || number != EEXIST ? -1 : readlinkat(parent, name, link, sizeof link - 1);
    close(parent);
    errno = number;
    if (!made && number != EEXIST) return -1;
    if (size <= 0) return open_inside(root, path, O_PATH | O_DIRECTORY, 0);
    link[size] = 0;
    errno = ELOOP;
    if (links >= 40) return -1;
    if (snprintf(target, sizeof target, "%s%s%s", *link == '/' || name == copy ? "" : copy,
                 *link == '/' ? "" : "/", link) >= (int)sizeof target)
        return -1;
    return make_directory(root, target, mode, links + 1);
}

static int directory_inside(int root, const char *path, mode_t mode) {
    return make_directory(root, path, mode, 0);
}

/* The parent's directory inside, and the last name. */
static int parent_inside(int root, const char *path, char *copy, char **name) {
    snprintf(copy, PATH_MAX, "%s", path);
    char *slash = strrchr(copy, '/');
    *name = slash ? slash + 1 : copy;
    if (!slash) return dup(root);
    *slash = 0;
    return directory_inside(root, copy, 0755);
}

/* What a mount goes onto: made as a directory, or as an empty file where a file is mounted. */
static int mount_point(int root, const char *path, int is_file) {
    if (!is_file) return directory_inside(root, path, 0755);
    int fd = open_inside(root, path, O_PATH, 0);
    if (fd >= 0 || errno != ENOENT) return fd;
    char copy[PATH_MAX], *name;
    int parent = parent_inside(root, path, copy, &name);
    if (parent < 0) return -1;
    fd = openat(parent, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd < 0 && errno != EEXIST) return -1;
    close(fd);
    close(parent);
    return open_inside(root, path, O_PATH, 0);
}

static const char *by_fd(int fd) {
    static char path[2][40];
    static int turn;
    turn = !turn;
    snprintf(path[turn], sizeof path[turn], "/proc/self/fd/%d", fd);
    return path[turn];
}

#define PROPAGATION (MS_SHARED | MS_SLAVE | MS_PRIVATE | MS_UNBINDABLE)

static void mount_inside(int root, const char *value, uint32_t length) {
    const char *m[6]; /* type source target flags propagation data */
    parts(value, length, m, 6);
    unsigned long flags = strtoul(m[3], 0, 10), propagation = strtoul(m[4], 0, 10);
    struct stat status;
    int is_file = 0;
    if (flags & MS_BIND) {
        if (stat(m[1], &status)) fail("mount", m[1]);
        is_file = !S_ISDIR(status.st_mode);
    }
    int fd = mount_point(root, m[2], is_file);
    if (fd < 0) fail("mount", m[2]);
    if (flags & MS_BIND) {
        if (mount(m[1], by_fd(fd), 0, flags & (MS_BIND | MS_REC), 0)) fail("mount", m[2]);
    } else if (mount(m[1], by_fd(fd), m[0], flags, *m[5] ? m[5] : 0))
        fail("mount", m[2]);
    close(fd);
    if ((fd = open_inside(root, m[2], O_PATH, 0)) < 0) fail("mount", m[2]);
    unsigned long more = flags & ~(unsigned long)(MS_BIND | MS_REC);
    if (flags & MS_BIND && more && mount(0, by_fd(fd), 0, MS_REMOUNT | MS_BIND | more, 0))
        fail("remount", m[2]);
    if (propagation & PROPAGATION && mount(0, by_fd(fd), 0, propagation, 0)) fail("propagation", m[2]);
    close(fd);
}

static void device_inside(int root, const char *value, uint32_t length) {
    const char *d[7]; /* path type major minor mode uid gid */
    char copy[PATH_MAX], *name;
    parts(value, length, d, 7);
    mode_t kind = *d[1] == 'c' || *d[1] == 'u' ? S_IFCHR : *d[1] == 'b' ? S_IFBLK : S_IFIFO;
    int parent = parent_inside(root, d[0], copy, &name);
    if (parent < 0) fail("device", d[0]);
    mode_t mode = strtoul(d[4], 0, 10) & 07777;
    if (mknodat(parent, name, kind | mode, makedev(atoi(d[2]), atoi(d[3])))) {
        if (errno != EEXIST) fail("device", d[0]);
    } else if (fchownat(parent, name, strtoul(d[5], 0, 10), strtoul(d[6], 0, 10), AT_SYMLINK_NOFOLLOW) ||
               fchmodat(parent, name, mode, 0)) /* the umask took some away */
        fail("device", d[0]);
    close(parent);
}

static void symlink_inside(int root, const char *value, uint32_t length) {
    const char *l[2]; /* path target */
    char copy[PATH_MAX], *name;
    parts(value, length, l, 2);
    int parent = parent_inside(root, l[0], copy, &name);
    if (parent < 0 || (symlinkat(l[1], parent, name) && errno != EEXIST)) fail("symlink", l[0]);
    close(parent);
}

static void mask_inside(int root, const char *path) {
    struct stat status;
    int fd = open_inside(root, path, O_PATH, 0);
    if (fd < 0) {
        if (errno == ENOENT || errno == ENOTDIR) return;
        fail("mask", path);
    }
    if (fstat(fd, &status)) fail("mask", path);
    if (S_ISDIR(status.st_mode) ? mount("tmpfs", by_fd(fd), "tmpfs", MS_RDONLY, "size=0k")
                                : mount("/dev/null", by_fd(fd), 0, MS_BIND, 0))
        fail("mask", path);
    close(fd);
}

static void protect_inside(int root, const char *path) {
    int fd = open_inside(root, path, O_PATH, 0);
    if (fd < 0) {
        if (errno == ENOENT || errno == ENOTDIR) return;
        fail("read-only path", path);
    }
    if (mount(by_fd(fd), by_fd(fd), 0, MS_BIND | MS_REC, 0)) fail("read-only path", path);
    close(fd);
    if ((fd = open_inside(root, path, O_PATH, 0)) < 0) fail("read-only path", path);
    struct statvfs about;
    if (fstatvfs(fd, &about)) fail("read-only path", path);
    unsigned long keep = about.f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC); /* the same numbers */
    if (mount(0, by_fd(fd), 0, MS_REMOUNT | MS_BIND | MS_RDONLY | keep, 0)) fail("read-only path", path);
    close(fd);
}

static void set_sysctl(char *value) {
    char path[PATH_MAX], *equal = strchr(value, '=');
    if (!equal) fail_with(EINVAL, "sysctl", value);
    snprintf(path, sizeof path, "/proc/sys/%.*s", (int)(equal - value), value);
    if (put_text(path, equal + 1)) fail("sysctl", value);
}

/* Do to each field of that name what is to be done inside. */
static void each(const struct call *call, const char *name, int root,
                 void (*act)(int, const char *, uint32_t)) {
    const char *at = call->data, *key, *value;
    uint32_t length;
    while ((key = next_field(call, &at, &value, &length)))
        if (!strcmp(key, name)) act(root, value, length);
}

static void mask_field(int root, const char *value, uint32_t length) {
    (void)length;
    mask_inside(root, value);
}

static void protect_field(int root, const char *value, uint32_t length) {
    (void)length;
    protect_inside(root, value);
}

static void sysctl_field(int root, const char *value, uint32_t length) {
    (void)root, (void)length;
    char *copy = strdup(value);
    if (copy) set_sysctl(copy);
    free(copy);
}

static void build_root(const struct call *call) {
    const char *where = text(call, "root"), *cwd = text(call, "cwd");
    unsigned long propagation = number(call, "propagation");
    if (mount(0, "/", 0, propagation ? propagation : MS_REC | MS_PRIVATE, 0)) fail("propagation", "/");
    /* pivot_root(2) wants a mount, and not a shared parent of it */
    if (mount(0, "/", 0, MS_REC | MS_SLAVE, 0) || mount(where, where, 0, MS_BIND | MS_REC, 0))
        fail("root", where);
    int root = open(where, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0) fail("root", where);
    each(call, "mount", root, mount_inside);
    each(call, "device", root, device_inside);
    each(call, "symlink", root, symlink_inside);
    each(call, "sysctl", root, sysctl_field);
    if (*cwd) {
        int fd = directory_inside(root, cwd, 0755);
        if (fd >= 0) close(fd);
    }
    each(call, "protect", root, protect_field);
    each(call, "mask", root, mask_field);
    if (number(call, "readonly") && mount(0, by_fd(root), 0, MS_REMOUNT | MS_BIND | MS_RDONLY, 0))
        fail("root", where);
    if (fchdir(root) || syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
        fail("pivot_root", where);
    close(root);
}

/* A terminal of the container's own devpts; its master goes to the agent. */
static void open_terminal(const struct call *call, int console, uid_t uid) {
    struct winsize size = {0};
    int zero = 0;
    sscanf(text(call, "terminal"), "%hu %hu", &size.ws_row, &size.ws_col);
    int master = open("/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (master < 0) master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (master < 0 || ioctl(master, TIOCSPTLCK, &zero)) fail("terminal", "/dev/ptmx");
    int slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC), index;
    if (slave < 0 || ioctl(master, TIOCGPTN, &index)) fail("terminal", "/dev/ptmx");
    if (size.ws_row && ioctl(master, TIOCSWINSZ, &size)) fail("terminal", "size");
    if (console) {
        char path[40];
        snprintf(path, sizeof path, "/dev/pts/%d", index);
        int fd = open("/dev/console", O_CREAT | O_WRONLY | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY, 0666);
        if (fd >= 0) close(fd);
        if (mount(path, "/dev/console", 0, MS_BIND, 0)) fail("terminal", "/dev/console");
    }
    if (fchown(slave, uid, -1)) fail("terminal", "owner");
    tell('t', 0, "", "", master);
    close(master);
    if (setsid() < 0 && errno != EPERM) fail("terminal", "setsid");
    if (ioctl(slave, TIOCSCTTY, 0)) fail("terminal", "controlling terminal");
    for (int fd = 0; fd < 3; fd++)
        if (dup2(slave, fd) < 0) fail("terminal", "dup2");
    close(slave);
}

static void load_filter(const struct call *call) {
    struct {
        unsigned short length;
        const void *filter;
    } program;
    uint32_t size = 0;
    program.filter = field(call, "seccomp", &size);
    program.length = size / 8;
    if (size && syscall(SYS_seccomp, 1, 0, &program)) fail("seccomp", "");
}

static void take_identity(const struct call *call) {
    unsigned long long sets[5] = {0}; /* bounding effective permitted inheritable ambient */
    const char *caps = field(call, "caps", 0);
    const char **groups = list(call, "group"), **limits = list(call, "rlimit");
    gid_t ids[NGROUPS_MAX < 4096 ? NGROUPS_MAX : 4096];
    uid_t uid = strtoul(text(call, "uid"), 0, 10);
    gid_t gid = strtoul(text(call, "gid"), 0, 10);
    int count = 0;
    for (; *limits; limits++) {
        unsigned long long soft, hard;
        int which;
        if (sscanf(*limits, "%d %llu %llu", &which, &soft, &hard) != 3) fail_with(EINVAL, "rlimit", *limits);
        struct rlimit limit = {soft, hard};
        if (setrlimit(which, &limit)) fail("rlimit", *limits);
    }
    if (caps) {
        sscanf(caps, "%llx %llx %llx %llx %llx", sets, sets + 1, sets + 2, sets + 3, sets + 4);
        for (int cap = 0; cap < CAPS; cap++)
            if (!(sets[0] >> cap & 1) && prctl(PR_CAPBSET_DROP, cap) && errno != EINVAL)
                fail("capabilities", "bounding");
    }
    for (; *groups && count < (int)(sizeof ids / sizeof *ids); groups++)
        ids[count++] = strtoul(*groups, 0, 10);
    if (setgroups(count, ids)) fail("groups", "");
    if (caps && prctl(PR_SET_KEEPCAPS, 1)) fail("capabilities", "keep");
    if (setresgid(gid, gid, gid) || setresuid(uid, uid, uid)) fail("identity", "");
    if (caps) {
        uint32_t head[2] = {0x20080522, 0}, data[6];
        for (int half = 0; half < 2; half++)
            for (int set = 0; set < 3; set++) data[half * 3 + set] = sets[1 + set] >> half * 32;
        if (syscall(SYS_capset, head, data)) fail("capabilities", "");
        for (int cap = 0; cap < CAPS; cap++)
            if (sets[4] >> cap & 1 && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0))
                fail("capabilities", "ambient");
    }
    umask(*text(call, "umask") ? number(call, "umask") : 022);
}

/* HOME from /etc/passwd of the container, as runc does it; "/" for who has no line there. */
static const char *home(uid_t uid) {
    static char line[1024], result[600];
    FILE *file = fopen("/etc/passwd", "re");
    strcpy(result, "HOME=/");
    while (file && fgets(line, sizeof line, file)) {
        char *part[6], *at = line;
        int count = 0;
        while (count < 6 && at) {
            part[count++] = strsep(&at, ":");
        }
        if (count == 6 && *part[2] && strtoul(part[2], 0, 10) == uid) {
            snprintf(result, sizeof result, "HOME=%.590s", part[5]);
            break;
        }
    }
    if (file) fclose(file);
    return result;
}

/* Where execvp(3) would find it, in the container's own PATH; the error is told before `start`. */
static const char *locate(const char *name, const char **env) {
    static char path[PATH_MAX];
    const char *search = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    char message[256];
    struct stat status;
    int number = ENOENT;
    if (strchr(name, '/')) {
        if (stat(name, &status)) fail("exec", name);
        if (S_ISDIR(status.st_mode) || access(name, X_OK)) {
            errno = S_ISDIR(status.st_mode) ? EISDIR : EACCES;
            fail("exec", name);
        }
        return name;
    }
    for (; *env; env++)
        if (!strncmp(*env, "PATH=", 5)) search = *env + 5;
    while (*name && *search) {
        size_t length = strcspn(search, ":");
        snprintf(path, sizeof path, "%.*s/%s", (int)length, length ? search : ".", name);
        if (!stat(path, &status) && S_ISREG(status.st_mode)) {
            if (!access(path, X_OK)) return path;
            number = EACCES;
        }
        search += length + (search[length] == ':');
    }
    snprintf(message, sizeof message, "%.100s: executable file not found in $PATH", name);
    fail_with(number, "exec", number == EACCES ? strerror(EACCES) : message);
    return 0;
}

/* In the new process, inside its namespaces: all that is left, up to execve. */
static void become(const struct call *call, int created, const int *ends) {
    const char **arguments = list(call, "arg"), **env = list(call, "env"), **last = env;
    uid_t uid = strtoul(text(call, "uid"), 0, 10);
    int has_home = 0;
    setsid();
    if (field(call, "oom", 0)) put_text("/proc/self/oom_score_adj", text(call, "oom"));
    if (created) {
        uint32_t size = 0;
        const char *name = field(call, "hostname", &size);
        if (name && sethostname(name, size)) fail("hostname", name);
        if ((name = field(call, "domainname", &size)) && setdomainname(name, size)) fail("domainname", name);
        build_root(call);
    }
    if (field(call, "terminal", 0))
        open_terminal(call, created, uid);
    else
        for (int fd = 0; fd < 3; fd++)
            if (dup2(ends[fd], fd) < 0) fail("streams", "");
    for (; *last; last++) has_home |= !strncmp(*last, "HOME=", 5);
    if (!has_home) *last = home(uid);
    if (!number(call, "nnp")) load_filter(call);
    take_identity(call);
    const char *cwd = text(call, "cwd");
    if (chdir(*cwd ? cwd : "/")) fail("cwd", cwd);
    char where[PATH_MAX];
    if (!getcwd(where, sizeof where) || *where != '/')
        fail_with(ENOENT, "cwd", "is outside of the container's root");
    const char *program = locate(*arguments ? *arguments : "", env);
    if (number(call, "nnp") && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) fail("no_new_privs", "");
    sigset_t none;
    sigemptyset(&none);
    syscall(SYS_close_range, 3, ~0U, 4); /* CLOSE_RANGE_CLOEXEC */
    if (created) {
        char byte;
        tell('r', 0, "", "", -1);
        if (recv(told_fd, &byte, 1, 0) != 1) _exit(1);
    }
    if (number(call, "nnp")) load_filter(call);
    sigprocmask(SIG_SETMASK, &none, 0);
    execve(program, (char **)arguments, (char **)env);
    fail("exec", program);
}

static pid_t clone_with(unsigned long flags) { return syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0); }

static void cgroup_path(char *path, const char *container, const char *file) {
    snprintf(path, PATH_MAX, CGROUPS "/%s%s%s", container, *file ? "/" : "", file);
}

/* The cgroup of the container's first process: a container that manages cgroups itself has left the one it
 * was given (cgroups(7), "no internal processes"). */
static void join_cgroup(const char *container, pid_t first) {
    char path[PATH_MAX], line[PATH_MAX], from[40];
    cgroup_path(path, container, "cgroup.procs");
    if (!put_text(path, "0")) return;
    if (first > 0 && errno == EBUSY) {
        snprintf(from, sizeof from, "/proc/%d/cgroup", first);
        ssize_t length = get_file(from, line, sizeof line - 1);
        if (length > 4 && !strncmp(line, "0::/", 4)) {
            line[length] = 0;
            line[strcspn(line, "\n")] = 0;
            snprintf(path, sizeof path, CGROUPS "/%.3900s/cgroup.procs", line + 4);
            if (!put_text(path, "0")) return;
        }
    }
    fail("cgroup", container);
}

static int enter(pid_t pid, int flags) {
    int fd = syscall(SYS_pidfd_open, pid, 0);
    if (fd < 0) return -1;
    int failed = setns(fd, flags);
    close(fd);
    return failed;
}

#define EVERY (CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET | CLONE_NEWCGROUP)

/* The child of the agent: enters what is to be joined, and is or makes the process. */
static void born(const struct call *call, int created, const int *ends, pid_t first) {
    const char *container = text(call, "container"), **joins = list(call, "join");
    unsigned long flags = number(call, "namespaces");
    int helper = !created;
    prctl(PR_SET_DUMPABLE, 0); /* what joins a container is not the container's to trace */
    join_cgroup(container, first);
    if (!created && enter(first, EVERY)) fail("enter", container);
    for (; created && *joins; joins++) {
        unsigned int id;
        unsigned long which;
        struct process *p;
        if (sscanf(*joins, "%u %lu", &id, &which) != 2 || !(p = find(id)) || enter(p->pid, which))
            fail("join", *joins);
        helper |= !!(which & CLONE_NEWPID);
    }
    if (created && flags & CLONE_NEWCGROUP && unshare(CLONE_NEWCGROUP)) fail("cgroup", "namespace");
    if (helper) { /* only a child is in the joined pid namespace; the agent is its parent */
        pid_t pid = clone_with(CLONE_PARENT | (created ? flags & ~(CLONE_NEWCGROUP | CLONE_NEWPID) : 0));
        if (pid < 0) fail("clone", "");
        if (pid) {
            tell('p', pid, "", "", -1);
            _exit(0);
        }
    }
    become(call, created, ends);
}

static int is_name(const char *container) {
    return *container && *container != '.' && !strchr(container, '/') && strlen(container) < 256;
}

/* Which devices the container may use: a program for its cgroup (bpf(2), BPF_PROG_TYPE_CGROUP_DEVICE). */
static int guard_devices(const struct call *call, const char *group) {
    uint32_t size = 0;
    const char *program = field(call, "devices", &size);
    struct {
        uint32_t type, count;
        uint64_t program, license;
        uint32_t level, log_size;
        uint64_t log;
        uint32_t version, flags;
    } load = {15, size / 8, (uintptr_t)program, (uintptr_t)"Apache", 0, 0, 0, 0, 0};
    struct {
        uint32_t target, program, type, flags;
    } attach = {.type = 6};
    if (!size) return 0;
    int made = syscall(SYS_bpf, 5, &load, sizeof load);
    int directory = open(group, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    attach.target = directory;
    attach.program = made;
    int failed = made < 0 || directory < 0 || syscall(SYS_bpf, 8, &attach, sizeof attach), number = errno;
    if (made >= 0) close(made); /* the cgroup keeps it */
    if (directory >= 0) close(directory);
    errno = number;
    return failed;
}

static void spawn(const struct call *call, int created) {
    const char *container = text(call, "container");
    int ends[3] = {-1, -1, -1}, ours[3] = {-1, -1, -1}, told[2] = {-1, -1},
        terminal = !!field(call, "terminal", 0);
    unsigned long flags = number(call, "namespaces");
    struct process *first = created ? 0 : first_of(container), *p;
    char path[PATH_MAX];
    if (!is_name(container) || find(number(call, "process")))
        return refuse(call->id, EINVAL, "process", "no such name or number can be");
    if (!created && (!first || first->pid <= 0))
        return refuse(call->id, ESRCH, "enter", "the container does not run");
    if (created) {
        cgroup_path(path, container, "");
        if (mkdir(path, 0755) && errno != EEXIST) return refuse_errno(call->id, "cgroup", container);
        if (guard_devices(call, path)) return refuse_errno(call->id, "devices", container);
        const char *at = call->data, *key, *value, *equal;
        uint32_t length;
        while ((key = next_field(call, &at, &value, &length)))
            if (!strcmp(key, "limit") && (equal = strchr(value, '='))) {
                snprintf(path, sizeof path, CGROUPS "/%s/%.*s", container, (int)(equal - value), value);
                if (put_text(path, equal + 1)) return refuse_errno(call->id, "cgroup", value);
            }
    }
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, told))
        return refuse_errno(call->id, "socketpair", "");
    int failed = 0;
    for (int i = 0; !terminal && i < 3; i++) {
        int pair[2];
        if (!i && !field(call, "stdin", 0))
            failed |= (ends[0] = open("/dev/null", O_RDWR | O_CLOEXEC)) < 0;
        else if (pipe2(pair, O_CLOEXEC))
            failed = 1;
        else {
            ends[i] = pair[!!i];
            ours[i] = pair[!i];
            nonblocking(ours[i]);
            if (fchown(ends[i], strtoul(text(call, "uid"), 0, 10), -1))
                failed = 1; /* /dev/stdout opens for the user */
        }
    }
    /* a namespace for pids is given to the child at once, unless one is joined first */
    int joins_pids = 0;
    for (const char **joins = list(call, "join"); created && *joins; joins++) {
        unsigned long which = 0;
        sscanf(*joins, "%*u %lu", &which);
        joins_pids |= !!(which & CLONE_NEWPID);
    }
    pid_t pid = failed ? -1 : clone_with(created && !joins_pids ? flags & ~CLONE_NEWCGROUP : 0);
    if (!pid) {
        told_fd = told[1];
        born(call, created, ends, first ? first->pid : 0);
    }
    int number_of_error = errno;
    for (int i = 0; i < 3; i++) shut(&ends[i]);
    close(told[1]);
    if (pid < 0 || !(p = calloc(1, sizeof *p))) {
        for (int i = 0; i < 3; i++) shut(&ours[i]);
        close(told[0]);
        errno = number_of_error;
        return refuse_errno(call->id, "clone", "");
    }
    nonblocking(told[0]);
    *p = (struct process){.next = processes,
                          .id = number(call, "process"),
                          .call = call->id,
                          .told = told[0],
                          .master = terminal,
                          .fd = {ours[0], ours[1], ours[2]},
                          .credit = {0, OUT_WINDOW, OUT_WINDOW},
                          .first = created,
                          .stage = created ? MAKING : STARTING};
    p->pid = !created || joins_pids ? 0 : pid;
    snprintf(p->container, sizeof p->container, "%s", container);
    processes = p;
}

/* ---- what processes do ---- */

static void give_up(struct process *p, const struct word *word) {
    refuse(p->call, word->number, word->step, word->message);
    if (p->pid > 0) kill(p->pid, SIGKILL); /* it ends by itself; the wait below is short */
    if (p->pid > 0) waitpid(p->pid, 0, 0);
    forget(p);
}

/* What a new process tells, or that it has come to execve: the socket closes then. 1: it is forgotten. */
static int hear(struct process *p) {
    struct word word = {0};
    struct iovec vector = {&word, sizeof word};
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr head = {
        .msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t length = recvmsg(p->told, &head, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    struct buffer fields = {0};
    if (length < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (length <= 0) {
        shut(&p->told);
        if (!p->call) return 0;                  /* killed while it waited: its exit says so */
        if (p->stage == MAKING || p->pid <= 0) { /* killed, or out of memory */
            snprintf(word.step, sizeof word.step, "clone");
            snprintf(word.message, sizeof word.message, "the process ended before it was ready");
            word.number = ECHILD;
            give_up(p, &word);
            return 1;
        }
        put_number(&fields, "pid", p->pid);
        answer(p->call, &fields);
        p->call = 0;
        release(&fields);
        return 0;
    }
    switch (word.kind) {
    case 'p': p->pid = word.number; return 0;
    case 't': {
        int fd;
        memcpy(&fd, CMSG_DATA(&control.head), sizeof fd);
        nonblocking(fd);
        p->fd[0] = p->fd[1] = fd;
        return 0;
    }
    case 'r':
        put_number(&fields, "pid", p->pid);
        answer(p->call, &fields);
        p->call = 0;
        p->stage = WAITING;
        release(&fields);
        return 0;
    default:
        word.step[sizeof word.step - 1] = word.message[sizeof word.message - 1] = 0;
        give_up(p, &word);
        return 1;
    }
}

static void read_stream(struct process *p, int stream) {
    uint32_t room = p->credit[stream] < MAX_DATA ? p->credit[stream] : MAX_DATA;
    static char data[MAX_DATA];
    ssize_t length = read(p->fd[stream], data, room);
    if (length < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (length <= 0) return end_stream(p, stream); /* EIO: a terminal that nobody has open any more */
    p->credit[stream] -= length;
    send_frame(DATA, stream, p->id, data, length);
}

static void write_input(struct process *p) {
    while (held(&p->input) && p->fd[0] >= 0) {
        ssize_t length = write(p->fd[0], p->input.data + p->input.begin, held(&p->input));
        if (length < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (length < 0) return end_stream(p, 0);
        p->input.begin += length;
        uint32_t count = length;
        send_frame(WINDOW, 0, p->id, &count, 4);
    }
    if (p->input_ends && !p->master && p->fd[0] >= 0) shut(&p->fd[0]);
}

static long kills_in(const char *container) {
    char path[PATH_MAX], data[1024], *at;
    cgroup_path(path, container, "memory.events");
    ssize_t length = get_file(path, data, sizeof data - 1);
    if (length < 0) return 0;
    data[length] = 0;
    return (at = strstr(data, "oom_kill ")) ? strtol(at + 9, 0, 10) : 0;
}

static void tell_exit(struct process *p, int status) {
    struct buffer fields = {0};
    put_number(&fields, "status", status);
    put_number(&fields, "oom", kills_in(p->container));
    send_frame(EXIT, 0, p->id, fields.data, held(&fields));
    release(&fields);
    p->exited = 1;
    p->pid = -1;
    if (!p->master) shut(&p->fd[0]);
}

static void reap(void) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        for (struct process *p = processes, *next; p; p = next) {
            next = p->next;
            if (p->told >= 0 && p->pid <= 0 && hear(p)) continue; /* its pid may be told and not heard */
            if (p->pid != pid) continue;
            while (p->told >= 0) { /* its last words come before its end */
                struct pollfd fd = {p->told, POLLIN, 0};
                if (poll(&fd, 1, 0) <= 0) break;
                int gone = hear(p);
                if (gone) {
                    p = 0;
                    break;
                }
            }
            if (p) tell_exit(p, status);
            break;
        }
}

/* ---- calls ---- */

static void do_write(const struct call *call) {
    uint32_t length = 0;
    const char *data = field(call, "data", &length);
    char *path = strdup(text(call, "path"));
    mode_t mode = *text(call, "mode") ? number(call, "mode") : 0644;
    int flags = O_CREAT | (number(call, "append") ? O_APPEND : O_TRUNC);
    if (!path || make_parents(path) || put_file(path, data ? data : "", length, flags, mode))
        refuse_errno(call->id, "write", text(call, "path"));
    else if (field(call, "uid", 0) && chown(path, number(call, "uid"), number(call, "gid")))
        refuse_errno(call->id, "chown", path);
    else if (field(call, "mode", 0) && chmod(path, mode))
        refuse_errno(call->id, "chmod", path);
    else
        answer(call->id, 0);
    free(path);
}

static void do_mkdir(const struct call *call) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s", text(call, "path"));
    mode_t mode = *text(call, "mode") ? number(call, "mode") : 0755;
    report(call, make_parents(path) || (mkdir(path, mode) && errno != EEXIST), path);
}

static void do_mount(const struct call *call) {
    char target[PATH_MAX];
    const char *data = text(call, "data");
    snprintf(target, sizeof target, "%s", text(call, "target"));
    if (make_parents(target) || (mkdir(target, 0755) && errno != EEXIST))
        return refuse_errno(call->id, "mkdir", target);
    const char *source = text(call, "source"), *type = text(call, "type");
    report(call, mount(source, target, type, number(call, "flags"), *data ? data : 0), target);
}

static void do_read(const struct call *call) {
    const char **paths = list(call, "path"), **path = paths;
    static char data[MAX_READ];
    struct buffer fields = {0};
    for (; *path; path++) {
        ssize_t length = get_file(*path, data, sizeof data);
        if (length < 0)
            put_number(&fields, "error", errno);
        else
            put_field(&fields, "data", data, length);
    }
    answer(call->id, &fields);
    release(&fields);
    free(paths);
}

static void do_renew(const struct call *call) {
    long long now = strtoll(text(call, "time"), 0, 10);
    struct timespec when = {now / 1000000000, now % 1000000000};
    struct {
        int bits, size;
        char data[512];
    } seed = {0};
    uint32_t length = 0;
    const char *data = field(call, "seed", &length);
    if (now && clock_settime(CLOCK_REALTIME, &when)) return refuse_errno(call->id, "clock_settime", "");
    if (length > sizeof seed.data) length = sizeof seed.data;
    if (length) {
        memcpy(seed.data, data, length);
        seed.bits = (seed.size = length) * 8;
        int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
        int failed = fd < 0 || ioctl(fd, RNDADDENTROPY, &seed) || ioctl(fd, RNDRESEEDCRNG);
        if (failed) refuse_errno(call->id, "random", "");
        close(fd);
        if (failed) return;
    }
    answer(call->id, 0);
}

static void do_netlink(const struct call *call) {
    struct {
        unsigned short family, pad;
        uint32_t pid, groups;
    } kernel = {AF_NETLINK, 0, 0, 0};
    static char data[MAX_READ];
    uint32_t length = 0;
    const char *request = field(call, "data", &length);
    struct buffer all = {0}, fields = {0};
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (fd < 0 || sendto(fd, request ? request : "", length, 0, (void *)&kernel, sizeof kernel) < 0) {
        refuse_errno(call->id, "netlink", "");
    } else {
        ssize_t count; /* rtnetlink answers before sendto returns, a dump goes on as it is read */
        while ((count = recv(fd, data, sizeof data, MSG_DONTWAIT)) > 0 && held(&all) < MAX_ANSWER / 2)
            add(&all, data, count);
        put_field(&fields, "data", all.data ? all.data : "", held(&all));
        answer(call->id, &fields);
    }
    if (fd >= 0) close(fd);
    release(&all);
    release(&fields);
}

/* Each process of the cgroup and of those below. */
static int each_process(const char *group, void (*act)(pid_t, void *), void *with) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/cgroup.procs", group);
    FILE *file = fopen(path, "re");
    if (!file) return -1;
    for (int pid; fscanf(file, "%d", &pid) == 1;) act(pid, with);
    fclose(file);
    DIR *directory = opendir(group);
    for (struct dirent *entry; directory && (entry = readdir(directory));)
        if (entry->d_type == DT_DIR && *entry->d_name != '.') {
            snprintf(path, sizeof path, "%.2000s/%s", group, entry->d_name);
            each_process(path, act, with);
        }
    if (directory) closedir(directory);
    return 0;
}

static void send_signal(pid_t pid, void *with) { kill(pid, *(int *)with); }

static void describe(pid_t pid, void *with) {
    static const char *const names[] = {"stat", "status", "cmdline"};
    char path[64], data[4096];
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "/proc/%d/%s", pid, names[i]);
        ssize_t length = get_file(path, data, sizeof data);
        put_field(with, names[i], data, length < 0 ? 0 : length);
    }
}

static void remove_groups(const char *group) {
    char path[PATH_MAX];
    DIR *directory = opendir(group);
    for (struct dirent *entry; directory && (entry = readdir(directory));)
        if (entry->d_type == DT_DIR && *entry->d_name != '.') {
            snprintf(path, sizeof path, "%.2000s/%s", group, entry->d_name);
            remove_groups(path);
        }
    if (directory) closedir(directory);
    rmdir(group);
}

static void do_ps(const struct call *call) {
    char group[PATH_MAX];
    const char *container = text(call, "container");
    struct buffer fields = {0};
    if (!is_name(container)) return refuse(call->id, EINVAL, "ps", "no such name can be");
    cgroup_path(group, container, "");
    if (each_process(group, describe, &fields))
        refuse_errno(call->id, "ps", container);
    else
        answer(call->id, &fields);
    release(&fields);
}

static void do_delete(const struct call *call) {
    char group[PATH_MAX], path[PATH_MAX];
    const char *container = text(call, "container");
    if (!is_name(container)) return refuse(call->id, EINVAL, "delete", "no such name can be");
    cgroup_path(path, container, "cgroup.kill");
    if (put_text(path, "1") && errno != ENOENT) return refuse_errno(call->id, "delete", container);
    cgroup_path(group, container, "");
    remove_groups(group);
    if (!access(group, F_OK)) return refuse(call->id, EBUSY, "delete", "processes of it are still ending");
    answer(call->id, 0);
}

static void do_signal(const struct call *call) {
    struct process *p = find(number(call, "process"));
    int signal = number(call, "signal");
    if (!p) return refuse(call->id, ESRCH, "signal", "no such process");
    if (number(call, "all")) {
        char group[PATH_MAX];
        cgroup_path(group, p->container, "");
        each_process(group, send_signal, &signal);
    } else if (p->pid <= 0 || kill(p->pid, signal))
        return refuse(call->id, ESRCH, "signal", "the process has ended");
    answer(call->id, 0);
}

static void do_start(const struct call *call) {
    struct process *p = find(number(call, "process"));
    if (!p || p->stage != WAITING || p->told < 0)
        return refuse(call->id, EINVAL, "start", "no such process waits to be started");
    p->stage = STARTING;
    p->call = call->id; /* answered when its socket closes */
    if (send(p->told, "", 1, MSG_NOSIGNAL) != 1) hear(p);
}

static void do_resize(const struct call *call) {
    struct process *p = find(number(call, "process"));
    struct winsize size = {.ws_row = number(call, "rows"), .ws_col = number(call, "columns")};
    if (!p || !p->master || p->fd[0] < 0) return refuse(call->id, ENOTTY, "resize", "no terminal");
    if (ioctl(p->fd[0], TIOCSWINSZ, &size)) return refuse_errno(call->id, "resize", "");
    answer(call->id, 0);
}

static void do_close(const struct call *call) {
    struct process *p = find(number(call, "process"));
    for (int stream = 1; p && stream < 3; stream++) end_stream(p, stream);
    answer(call->id, 0);
}

static void do_ping(const struct call *call) {
    struct buffer fields = {0};
    put_number(&fields, "version", VERSION);
    answer(call->id, &fields);
    release(&fields);
}

static void do_unmount(const struct call *call) {
    report(call, umount2(text(call, "target"), number(call, "flags")), text(call, "target"));
}

static void do_symlink(const struct call *call) {
    report(call, symlink(text(call, "target"), text(call, "path")), text(call, "path"));
}

static void do_remove(const struct call *call) {
    report(call, remove(text(call, "path")), text(call, "path"));
}

static void do_create(const struct call *call) { spawn(call, 1); }

static void do_exec(const struct call *call) { spawn(call, 0); }

static void do_poweroff(const struct call *call) {
    (void)call;
    sync();
    reboot(RB_AUTOBOOT);
}

static const struct {
    const char *name;
    void (*act)(const struct call *);
} verbs[] = {
    {"ping", do_ping},     {"renew", do_renew},     {"mount", do_mount},       {"unmount", do_unmount},
    {"mkdir", do_mkdir},   {"write", do_write},     {"read", do_read},         {"symlink", do_symlink},
    {"remove", do_remove}, {"netlink", do_netlink}, {"create", do_create},     {"exec", do_exec},
    {"start", do_start},   {"signal", do_signal},   {"resize", do_resize},     {"close", do_close},
    {"ps", do_ps},         {"delete", do_delete},   {"poweroff", do_poweroff},
};

static void obey(const struct call *call) {
    const char *verb = text(call, "call");
    for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++)
        if (!strcmp(verb, verbs[i].name)) return verbs[i].act(call);
    refuse(call->id, ENOSYS, verb, "the agent does not know this call");
}

static void take_frame(int type, int stream, uint32_t id, const char *data, uint32_t length) {
    struct process *p;
    if (type == CALL) {
        struct call call = {id, data, data + length};
        return obey(&call);
    }
    if (!(p = find(id))) return; /* it ended while this was under way */
    if (type == DATA && !stream) {
        if (p->fd[0] < 0 && !p->master) return;
        add(&p->input, data, length);
        write_input(p);
    } else if (type == END && !stream) {
        p->input_ends = 1;
        write_input(p);
    } else if (type == WINDOW && stream > 0 && stream < 3 && length == 4) {
        uint32_t count;
        memcpy(&count, data, 4);
        p->credit[stream] += count;
    }
}

/* ---- the machine's start, and the loop ---- */

static int by_name(const struct dirent **a, const struct dirent **b) {
    return strcmp((*a)->d_name, (*b)->d_name);
}

static void load_modules(void) {
    struct dirent **entries;
    char path[PATH_MAX];
    int count = scandir(MODULES, &entries, 0, by_name);
    for (int i = 0; i < count; i++) {
        if (*entries[i]->d_name == '.') continue;
        snprintf(path, sizeof path, MODULES "/%s", entries[i]->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
            dprintf(2, "agent: %s: %s\n", path, strerror(errno));
        close(fd);
        unlink(path); /* the initramfs is memory */
    }
}

static int open_port(void) {
    char path[300], name[64];
    DIR *directory = opendir("/sys/class/virtio-ports");
    int fd = -1;
    for (struct dirent *entry; directory && fd < 0 && (entry = readdir(directory));) {
        snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
        ssize_t length = get_file(path, name, sizeof name);
        if (length < 5 || strncmp(name, "agent", 5)) continue;
        snprintf(path, sizeof path, "/dev/%s", entry->d_name);
        fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    }
    if (directory) closedir(directory);
    return fd;
}

static void mount_or_die(const char *type, const char *target, unsigned long flags, const char *data) {
    if (mount(type, target, type, flags, data)) die(target);
}

static void start_machine(void) {
    struct ifreq lo = {.ifr_name = "lo"};
    /* the kernel's root is the initramfs, which pivot_root(2) refuses to leave: make it a mount of its own */
    if (mount("/", "/mnt", 0, MS_BIND, 0) || chdir("/mnt") || mount(".", "/", 0, MS_MOVE, 0) || chroot(".") ||
        chdir("/"))
        die("root");
    mount_or_die("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0);
    mount_or_die("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0);
    mount_or_die("devtmpfs", "/dev", MS_NOSUID, 0);
    mount_or_die("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=755");
    mount_or_die("cgroup2", CGROUPS, MS_NOSUID | MS_NODEV | MS_NOEXEC, 0);
    static const char *const controllers[] = {"+cpu", "+memory", "+pids", "+io", "+cpuset", "+hugetlb"};
    for (size_t i = 0; i < sizeof controllers / sizeof *controllers; i++)
        put_text(CGROUPS "/cgroup.subtree_control", controllers[i]);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && !ioctl(fd, SIOCGIFFLAGS, &lo)) {
        lo.ifr_flags |= IFF_UP;
        ioctl(fd, SIOCSIFFLAGS, &lo);
    }
    close(fd);
    load_modules();
    struct timespec pause = {0, 10000000};
    for (int tries = 0; (port = open_port()) < 0 && tries < 500; tries++) nanosleep(&pause, 0);
    if (port < 0) die("no virtio-serial port named agent");
}

static void say_ready(void) {
    struct utsname name;
    struct buffer fields = {0};
    uname(&name);
    put_number(&fields, "version", VERSION);
    put_field(&fields, "kernel", name.release, strlen(name.release));
    send_frame(READY, 0, 0, fields.data, held(&fields));
    release(&fields);
}

/* Read what the host sends, and obey each whole frame. 0: nobody is there. */
static int take_input(void) {
    static struct buffer incoming;
    char *into = reserve(&incoming, 65536);
    ssize_t length = read(port, into, 65536);
    if (length < 0) return errno == EAGAIN || errno == EINTR;
    if (!length) return 0;
    incoming.end += length;
    while (held(&incoming) >= HEADER) {
        const uint8_t *head = (uint8_t *)incoming.data + incoming.begin;
        uint32_t size = head[0] | head[1] << 8 | head[2] << 16 | (uint32_t)head[3] << 24;
        uint32_t id = head[8] | head[9] << 8 | head[10] << 16 | (uint32_t)head[11] << 24;
        if (size > MAX_CALL) die("a frame too long");
        if (held(&incoming) < HEADER + size) break;
        const char *data = incoming.data + incoming.begin + HEADER;
        incoming.begin += HEADER + size;
        take_frame(head[4], head[5], id, data, size);
    }
    return 1;
}

static void put_output(void) {
    while (held(&outgoing)) {
        ssize_t length = write(port, outgoing.data + outgoing.begin, held(&outgoing));
        if (length <= 0) return;
        outgoing.begin += length;
    }
}

static void watch(struct pollfd *fds, struct process **owners, int *count, struct process *p, int fd,
                  int events) {
    fds[*count] = (struct pollfd){fd, events, 0};
    owners[(*count)++] = p;
}

int main(void) {
    static struct pollfd *fds;
    static struct process **owners;
    static int room;
    int gone = 0;
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGCHLD);
    sigaddset(&signals, SIGPIPE);
    sigprocmask(SIG_BLOCK, &signals, 0);
    int children = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    umask(022);
    start_machine();
    say_ready();
    for (;;) {
        int count = 0, need = 2;
        for (struct process *p = processes; p; p = p->next) need += 4;
        if (need > room) {
            room = need * 2;
            fds = realloc(fds, room * sizeof *fds);
            owners = realloc(owners, room * sizeof *owners);
            if (!fds || !owners) die("no memory");
        }
        put_output();
        /* without a host poll(2) says so at once, again and again: look from time to time */
        watch(fds, owners, &count, 0, gone ? -1 : port, held(&outgoing) ? POLLIN | POLLOUT : POLLIN);
        watch(fds, owners, &count, 0, children, POLLIN);
        for (struct process *p = processes; p; p = p->next) {
            if (p->told >= 0) watch(fds, owners, &count, p, p->told, POLLIN);
            if (held(&p->input) && p->fd[0] >= 0) watch(fds, owners, &count, p, p->fd[0], POLLOUT);
            for (int stream = 1; stream < 3 && held(&outgoing) < ENOUGH; stream++)
                if (p->fd[stream] >= 0 && p->credit[stream])
                    watch(fds, owners, &count, p, p->fd[stream], POLLIN);
        }
        if (poll(fds, count, gone ? 100 : -1) < 0 && errno != EINTR) die("poll");
        if (gone || fds[0].revents & (POLLIN | POLLHUP | POLLERR)) gone = !take_input();
        for (int i = 2; i < count; i++) {
            struct process *p = processes;
            while (p && p != owners[i]) p = p->next;
            if (!p || !fds[i].revents) continue; /* forgotten meanwhile */
            if (fds[i].fd == p->told)
                hear(p);
            else if (fds[i].events & POLLOUT)
                write_input(p);
            else if (fds[i].fd == p->fd[1])
                read_stream(p, 1);
            else if (fds[i].fd == p->fd[2])
                read_stream(p, 2);
        }
        if (fds[1].revents) {
            struct signalfd_siginfo info;
            while (read(children, &info, sizeof info) > 0) {
            }
            reap();
        }
        for (struct process *p = processes, *next; p; p = next) {
            next = p->next;
            if (p->exited && p->fd[1] < 0 && p->fd[2] < 0 && !p->call) forget(p);
        }
    }
}
