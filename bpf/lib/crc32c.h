/* CRC32c, as SCTP has it (RFC 9260 appendix A), of packets that are known but for a few bits.
 *
 * A CRC is linear: two packets of one length whose bits differ by `d` have checksums that differ by the remainder of `d`
 * times x^n, n being the bits that follow, modulo the polynomial (initial value and final complement cancel out). So new
 * ports cost one multiplication in GF(2)[x] for each bit of the packet's length, and no look at the packet. Bits are
 * reflected: the highest of a word is x^0. */

#define CRC32C_POLYNOMIAL 0x82f63b78

/* a * b; a loop of known length, so that the verifier needs not see 32 copies of it. */
static __always_inline __u32 crc32c_multiply(__u32 a, __u32 b)
{
	__u32 product = 0;
#pragma clang loop unroll(disable)
	for (int i = 0; i < 32; i++) {
		product ^= a & -(b >> 31);
		b <<= 1;
		a = (a >> 1) ^ (CRC32C_POLYNOMIAL & -(a & 1));
	}
	return product;
}

/* Advance a remainder over 2^bit bytes, to x^(8 * 2^bit) the `power`, when `length` has that bit. Nothing but `set` may
 * hang on the branch, or the verifier would follow each length on its own. */
static __always_inline __u32 crc32c_advance(__u32 remainder, __u32 length, int bit, __u32 power)
{
	__u32 set = length >> bit & 1;
	asm volatile("" : "+r"(set));
	return set ? crc32c_multiply(power, remainder) : remainder;
}

/* The remainder of a packet of `length` bytes, fewer than 65,536, that are zero but for the first four. Each power is the
 * square of the one before. */
static __always_inline __u32 crc32c_of_head(__be32 head, __u32 length)
{
	__u32 r = __builtin_bswap32(bpf_ntohl(head)); /* the first byte is the lowest */
	r = crc32c_advance(r, length, 0, 0x00800000);
	r = crc32c_advance(r, length, 1, 0x00008000);
	r = crc32c_advance(r, length, 2, 0x82f63b78);
	r = crc32c_advance(r, length, 3, 0x6ea2d55c);
	r = crc32c_advance(r, length, 4, 0x18b8ea18);
	r = crc32c_advance(r, length, 5, 0x510ac59a);
	r = crc32c_advance(r, length, 6, 0xb82be955);
	r = crc32c_advance(r, length, 7, 0xb8fdb1e7);
	r = crc32c_advance(r, length, 8, 0x88e56f72);
	r = crc32c_advance(r, length, 9, 0x74c360a4);
	r = crc32c_advance(r, length, 10, 0xe4172b16);
	r = crc32c_advance(r, length, 11, 0x0d65762a);
	r = crc32c_advance(r, length, 12, 0x35d73a62);
	r = crc32c_advance(r, length, 13, 0x28461564);
	r = crc32c_advance(r, length, 14, 0xbf455269);
	r = crc32c_advance(r, length, 15, 0xe2ea32dc);
	return r;
}
