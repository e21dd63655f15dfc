/* In the guest of tests: what busybox cannot say on AF_VSOCK (vsock(7)).
   vs serve PORT: answers each connection with what it said. vs call PORT WORDS: says the words to the host. */
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void copy(int from, int to) {
  char data[65536];
  for (ssize_t got; (got = read(from, data, sizeof data)) > 0;)
    for (ssize_t done = 0, put; done < got; done += put)
      if ((put = write(to, data + done, got - done)) <= 0) return;
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  struct sockaddr_vm at = {.svm_family = AF_VSOCK, .svm_port = atoi(argv[2])};
  int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
  if (!strcmp(argv[1], "call") && argc == 4) {
    at.svm_cid = VMADDR_CID_HOST;
    if (connect(fd, (void *)&at, sizeof at)) return perror("connect"), 1;
    write(fd, argv[3], strlen(argv[3]));
    shutdown(fd, SHUT_WR);
    copy(fd, 1);
    puts("");
    return 0;
  }
  at.svm_cid = VMADDR_CID_ANY;
  if (bind(fd, (void *)&at, sizeof at) || listen(fd, 16)) return perror("bind"), 1;
  puts("serving");
  fflush(stdout);
  for (int peer; (peer = accept(fd, 0, 0)) >= 0; close(peer))
    if (!fork()) {
      copy(peer, peer);
      exit(0);
    }
  return 1;
}
