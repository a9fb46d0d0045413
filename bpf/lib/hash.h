/* Hashes that every node computes alike, whatever its byte order: slots of consistent sets hang on them. */

#define HASH_ROUNDS 3 /* of three words; the tenth word of a tuple comes last */

static __always_inline __u32 rotate(__u32 word, int bits)
{
	return word << bits | word >> (32 - bits);
}

/* Hash of a tuple: Bob Jenkins' lookup3 hashword() (public domain, May 2006) over its ten words, read in network byte
 * order, with initval 0. Documented for whoever must agree: another node, or another release. */
static __always_inline __u32 hash_tuple(const struct tuple *t)
{
	__be32 word[3 * HASH_ROUNDS + 1];
	__u32 a = 0xdeadbeef + sizeof(word), b = a, c = a;
	_Static_assert(sizeof(word) == sizeof(*t), "every word counts");
	__builtin_memcpy(word, t, sizeof(word));
#pragma unroll
	for (int i = 0; i < HASH_ROUNDS; i++) {
		a += bpf_ntohl(word[3 * i]);
		b += bpf_ntohl(word[3 * i + 1]);
		c += bpf_ntohl(word[3 * i + 2]);
		a = (a - c) ^ rotate(c, 4);
		c += b;
		b = (b - a) ^ rotate(a, 6);
		a += c;
		c = (c - b) ^ rotate(b, 8);
		b += a;
		a = (a - c) ^ rotate(c, 16);
		c += b;
		b = (b - a) ^ rotate(a, 19);
		a += c;
		c = (c - b) ^ rotate(b, 4);
		b += a;
	}
	a += bpf_ntohl(word[3 * HASH_ROUNDS]);
	c = (c ^ b) - rotate(b, 14);
	a = (a ^ c) - rotate(c, 11);
	b = (b ^ a) - rotate(a, 25);
	c = (c ^ b) - rotate(b, 16);
	a = (a ^ c) - rotate(c, 4);
	b = (b ^ a) - rotate(a, 14);
	return (c ^ b) - rotate(b, 24);
}
