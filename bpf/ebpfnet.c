/* Table of contents. One text holds all programs, so that they share their maps; ebpfnet/datapath/source.py puts it
 * together, because BCC rewrites map operations in the main file only. */
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>

#include "abi.h"
#include "maps.h"

#include "lib/packet.h"	    /* bytes to struct packet */
#include "lib/verdict.h"    /* how a program ends: finish, drop */
#include "lib/usage.h"	    /* packets and bytes of services */
#include "lib/flow.h"	    /* connections: find, remember, track */
#include "lib/hash.h"	    /* of a connection, on every node alike */
#include "lib/service.h"    /* frontend to backend */
#include "lib/crc32c.h"	    /* SCTP's checksum */
#include "lib/socket.h"	    /* connections that need no translation */
#include "lib/rewrite.h"    /* addresses, ports, checksums */
#include "lib/route.h"	    /* what the kernel's routing table says */
#include "lib/deliver.h"    /* to a pod, to another node, to the stack */
#include "lib/icmp_error.h" /* errors translated back along their flow */
#include "lib/reject.h"	    /* RST and ICMP errors of our own */
#include "lib/snat.h"	    /* the node in a client's place */
#include "lib/direct.h"	    /* from node to node in a second header, so that backends answer directly */
#include "lib/policy.h"	    /* who may talk to whom */

#include "from_pod.c"
#include "to_pod.c"
#include "from_pod_beside.c"
#include "to_pod_beside.c"
#include "from_network.c"
#include "lib/host.h" /* processes of this node as clients and backends */
#include "to_network.c"
#include "to_network_beside.c"
#include "from_host.c"
#include "connect.c"
