//! What Avro's binary encoding and Protobuf's wire format have in common. Pure.

/// Takes so many bytes off the front.
pub(super) fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], String> {
    let (taken, behind) = rest.split_at_checked(count).ok_or("it ends in the middle of a value")?;
    *rest = behind;
    Ok(taken)
}

/// Takes a number of variable length off the front: seven bits a byte, the lowest first, at most 64 bits.
pub(super) fn varint(rest: &mut &[u8]) -> Result<u64, String> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *take(rest, 1)?.first().ok_or("it ends in the middle of a number")?;
        if shift == 63 && byte > 1 {
            break;
        }
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err("a number has more than 64 bits".into())
}
