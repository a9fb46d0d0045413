/* Services: frontend -> endpoint set -> one slot, and what becomes of what is no frontend. */

static __always_inline struct service *service_of(const struct address *address, __be16 port, __u8 protocol)
{
	struct frontend frontend = { .address = *address, .port = port, .protocol = protocol };
	return services.lookup(&frontend);
}

static __always_inline struct pod *pod_of(const struct address *a)
{
	struct address address = *a;
	return pods.lookup(&address);
}

/* The pod of a wire that was made for us; what is for another plugin's goes that plugin's way, through the stack. */
static __always_inline struct pod *ours(const struct address *a)
{
	struct pod *pod = pod_of(a);
	return pod && !pod->wire.segment ? pod : NULL;
}

/* What an address is (enum mark); 0: nothing that we know. */
static __always_inline __u16 marks_of(const struct address *address)
{
	struct service *found = service_of(address, 0, 0);
	return found ? found->marks : 0;
}

/* 0.0.0.0 or ::, as the address is. */
static __always_inline struct address any_address(const struct address *address)
{
	struct address any = {};
	if (is_mapped(address))
		map_ipv4(&any, 0);
	return any;
}

/* The frontend that a destination is. 0.0.0.0 and :: are nobody's on the wire (RFC 1122 §3.2.1.3, RFC 4291 §2.5.2): in
 * `services` they stand for every address at which NodePorts are served. */
static __always_inline struct service *frontend_of(const struct tuple *t)
{
	const struct address *a = &t->destination;
	if (!a->word[3] && !a->word[0] && !a->word[1] && (!a->word[2] || a->word[2] == bpf_htonl(0xffff)))
		return NULL;
	return service_of(a, t->destination_port, t->protocol);
}

/* The NodePort that a port of this node is. */
static __always_inline struct service *nodeport_of(const struct tuple *t)
{
	struct address any = any_address(&t->destination);
	return service_of(&any, t->destination_port, t->protocol);
}

/* What kind of block an address is in (enum block_kind), or 0. */
static __always_inline __u32 block_of(const struct address *address)
{
	struct block block = { .prefix_length = 8 * sizeof(*address), .address = *address };
	__u32 *kind = blocks.lookup(&block);
	return kind ? *kind : 0;
}

/* A destination without a frontend of its own: NULL with *error 0 is no service's affair. Refusals are those of chain
 * cluster-ips-check of kube-proxy (pkg/proxy/nftables/proxier.go), which knows no protocols: pings are refused, too. */
static __always_inline struct service *served_elsewise(const struct tuple *t, int *error)
{
	struct service *service = NULL;
	__u16 marks = marks_of(&t->destination);
	if (marks & MARK_CLUSTER_IP)
		*error = -DROP_UNDEFINED_PORT;
	else if ((marks & MARK_NODEPORTS) && has_ports(t->protocol))
		service = nodeport_of(t);
	else if (!marks && block_of(&t->destination) == BLOCK_SERVICES)
		*error = -DROP_UNALLOCATED_ADDRESS;
	return service;
}

/* Is a connection to be sent on as it came, if its backend turns out to be elsewhere? Only for clients that are in no
 * block of pods and no nodes (the backend may be on that very node, which heeds nothing that comes from its own address),
 * and at a NodePort only for the addresses of Node objects: no other node knows more of them. */
static __always_inline bool goes_direct(const struct service *service, const struct tuple *t, bool node_port)
{
	return (service->marks & MARK_DIRECT) && (!node_port || (marks_of(&t->destination) & MARK_NODE)) &&
	       block_of(&t->source) != BLOCK_PODS && !(marks_of(&t->source) & MARK_NODE);
}

/* The endpoint set for a client. kube-proxy's short cut for externalTrafficPolicy Local (nftables/proxier.go,
 * "short-circuit pod traffic"): a pod of another node is inside too, though it comes from the network. */
static __always_inline __u64 set_for(const struct service *service, const struct tuple *t, __u32 hook)
{
	if (hook != HOOK_FROM_NETWORK || service->inside == service->outside)
		return service->inside;
	return block_of(&t->source) == BLOCK_PODS ? service->inside : service->outside;
}

/* Is a service for this client (loadBalancerSourceRanges)? */
static __always_inline bool in_range(const struct service *service, const struct address *client)
{
	struct range range = { .prefix_length = 64 + 8 * sizeof(*client), .address = *client };
	if (!service->ranges)
		return true;
	__builtin_memcpy(range.service, &service->ranges, sizeof(range.service));
	return ranges.lookup(&range) != NULL;
}

static __always_inline void point_at(struct flow *f, const struct backend *backend)
{
	f->to.destination = backend->address;
	f->to.destination_port = backend->port;
	f->flags |= FLOW_NAT;
}

/* The backend that a client stays with (sessionAffinity ClientIP): for as long as it comes back in time, and the backend
 * is in the set. kube-proxy counts from the client's last new connection, too (nftables/proxier.go,
 * writeServiceToEndpointRules: "update @affinity"). */
static __always_inline bool stay(struct flow *f, const struct client *client, __u32 affinity_s, __u64 now)
{
	struct affinity *last = affinity.lookup(client);
	if (!last || (__s64)(now - last->seen_ns) > (__s64)(affinity_s * SECOND))
		return false;
	struct member member = { .set = client->set, .backend = last->backend };
	if (!members.lookup(&member))
		return false;
	last->seen_ns = now;
	point_at(f, &member.backend);
	return true;
}

/* What the slot of a consistent set hangs on: the client's address and port, and those of the frontend as `services` has
 * it, so that a NodePort is the same on every node; where clients stay, the client's address alone. */
static __always_inline __u32 hash_connection(const struct tuple *t, bool node_port, bool stays)
{
	struct tuple hashed = { .source = t->source };
	if (!stays) {
		hashed = *t;
		if (node_port)
			hashed.destination = any_address(&t->destination);
	}
	return hash_tuple(&hashed);
}

/* Point `to` at a backend of set f->service. Returns 0 or -DROP_*. */
static __always_inline int choose_from_set(struct flow *f, bool node_port, bool stays)
{
	__u64 id = f->service;
	__u32 chance = 0;
	/* Between reading the count and reading the slot, the last slot may go: once more, with the new count. */
#pragma unroll
	for (int attempt = 0; attempt < 2; attempt++) {
		struct set *set = sets.lookup(&id);
		if (!set)
			return -DROP_NO_SLOT;
		struct slot slot = { .set = id, .generation = set->generation };
		__u32 count = set->count;
		if (count == 0)
			return set->flags & SET_ELSEWHERE ? -DROP_NO_LOCAL_ENDPOINTS : -DROP_NO_ENDPOINTS;
		if (attempt == 0)
			chance = set->flags & SET_CONSISTENT ? hash_connection(&f->to, node_port, stays) :
							       bpf_get_prandom_u32();
		slot.index = ((__u64)chance * count) >> 32;
		struct backend *backend = slots.lookup(&slot);
		if (backend) {
			point_at(f, backend);
			return 0;
		}
	}
	return -DROP_NO_SLOT;
}

/* Point `to` at a backend for a client, the one that it had if it stays. Returns 0 or -DROP_*. */
static __always_inline int choose_for_client(struct flow *f, bool node_port, __u32 affinity_s)
{
	struct client client = { .set = f->service, .address = f->to.source };
	struct affinity fresh = {};
	if (affinity_s) {
		fresh.seen_ns = bpf_ktime_get_coarse_ns();
		if (stay(f, &client, affinity_s, fresh.seen_ns))
			return 0;
	}
	int error = choose_from_set(f, node_port, affinity_s);
	if (error || !affinity_s)
		return error;
	fresh.backend.address = f->to.destination;
	fresh.backend.port = f->to.destination_port;
	affinity.update(&client, &fresh);
	return 0;
}

/* Point `to` at a backend when the destination is a service; *pod becomes the pod of this node that it is then, or NULL.
 * Whoever calls a pod here directly costs no lookup but that of the frontend. Returns 0 or -DROP_*. */
static __always_inline int find_backend(struct flow *f, __u32 hook, struct pod **pod)
{
	struct service *service = NULL;
	struct address address;
	bool node_port = false;
	int error = 0;
	if (has_ports(f->to.protocol))
		service = frontend_of(&f->to);
	if (!service) {
		address = f->to.destination;
		*pod = pods.lookup(&address);
		if (!*pod)
			service = served_elsewise(&f->to, &error);
		if (!service)
			return error;
		node_port = true;
	}
	if (!in_range(service, &f->to.source))
		return -DROP_SOURCE_RANGE;
	f->service = set_for(service, &f->to, hook);
	if (hook == HOOK_FROM_NETWORK && goes_direct(service, &f->to, node_port))
		f->flags |= FLOW_DIRECT;
	error = choose_for_client(f, node_port, service->affinity_s);
	if (error)
		return error;
	address = f->to.destination;
	*pod = pods.lookup(&address);
	return 0;
}

/* find_backend for who does not ask for the pod. */
static __always_inline int choose_backend(struct flow *f, __u32 hook)
{
	struct pod *pod;
	return find_backend(f, hook, &pod);
}

/* A pod that reaches itself must not see its own address as the client's, or it would answer past us: the service's
 * address stands in (the answer comes back to it, and to us). */
static __always_inline void source_hairpin(struct flow *f, const struct tuple *key)
{
	if ((f->flags & FLOW_NAT) && same_address(&f->to.destination, &f->to.source))
		f->to.source = key->destination;
}
