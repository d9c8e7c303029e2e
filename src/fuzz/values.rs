//! Messages of our protos with values that nobody meant: the shape is right, the rest is chance.

use std::sync::LazyLock;

use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor,
    ReflectMessage as _, Value, prost::Message as _,
};

use crate::{pb, types::Rng};

/// How deep messages nest; what lies deeper is left out.
const DEPTH_MAX: u32 = 6;

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(pb::DESCRIPTORS).expect("the build wrote the descriptors")
});

/// All messages that the project's protos define.
pub(crate) fn pool() -> &'static DescriptorPool {
    &POOL
}

/// The full names of all of them.
pub(crate) fn every_message() -> Vec<String> {
    let ours = POOL.all_messages().filter(|message| !message.is_map_entry());
    let names = ours.map(|message| message.full_name().to_owned());
    names.filter(|name| name.starts_with("quorate.")).collect()
}

/// An encoded message of this full name, with any values.
pub(crate) fn message(name: &str, rng: &mut Rng) -> Vec<u8> {
    let descriptor = POOL.get_message_by_name(name).expect("the name is that of a message");
    build(&descriptor, rng, 0).encode_to_vec()
}

fn build(descriptor: &MessageDescriptor, rng: &mut Rng, depth: u32) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    let chosen: Vec<FieldDescriptor> = descriptor
        .oneofs()
        .filter_map(|oneof| {
            let fields: Vec<_> = oneof.fields().collect();
            // One of them nearly always, and now and then none.
            let choice = rng.below(fields.len() as u64 * 16 + 1) as usize / 16;
            fields.get(choice).cloned()
        })
        .collect();
    let plain = descriptor.fields().filter(|field| field.containing_oneof().is_none());
    let plain: Vec<_> = plain.filter(|_| rng.below(4) > 0).collect();
    for field in chosen.iter().chain(&plain) {
        if depth < DEPTH_MAX || !matches!(field.kind(), Kind::Message(_)) {
            message.set_field(field, any(field, rng, depth));
        }
    }
    message
}

fn any(field: &FieldDescriptor, rng: &mut Rng, depth: u32) -> Value {
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else { unreachable!("a map is one of entries") };
        let value = entry.map_entry_value_field();
        let pairs = (0..rng.below(4))
            .map(|_| (MapKey::String(text(rng)), single(&value.kind(), rng, depth)));
        return Value::Map(pairs.collect());
    }
    if field.is_list() {
        let most = if rng.below(20) == 0 { 40 } else { 4 };
        let values = (0..rng.below(most)).map(|_| single(&field.kind(), rng, depth));
        return Value::List(values.collect());
    }
    single(&field.kind(), rng, depth)
}

fn single(kind: &Kind, rng: &mut Rng, depth: u32) -> Value {
    match kind {
        Kind::Double | Kind::Float => Value::F64(f64::from_bits(rng.next_u64())),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(number(rng) as i32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(number(rng) as i64),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(number(rng) as u32),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(number(rng)),
        Kind::Bool => Value::Bool(rng.below(2) == 0),
        Kind::String => Value::String(text(rng)),
        Kind::Bytes => Value::Bytes(bytes(rng).into()),
        Kind::Enum(kinds) => match rng.below(8) {
            0 => Value::EnumNumber(number(rng) as i32),
            _ => {
                let known = kinds.values().len() as u64;
                let nth = kinds.values().nth(rng.below(known) as usize);
                Value::EnumNumber(nth.expect("it is below their number").number())
            }
        },
        Kind::Message(inner) => Value::Message(build(inner, rng, depth + 1)),
    }
}

/// Mostly small ones, which meet each other, and else the edges.
fn number(rng: &mut Rng) -> u64 {
    match rng.below(8) {
        0..=4 => rng.below(12),
        5 => u64::MAX - rng.below(2),
        6 => (1 << 63) - rng.below(3),
        _ => rng.next_u64(),
    }
}

/// Few different short ones, which meet each other; ids; and some that are too long or odd.
pub(crate) fn text(rng: &mut Rng) -> String {
    const SHORT: &[&str] = &[
        "",
        "a",
        "b",
        "l",
        "k",
        "s/1",
        "orders",
        "1:2:0",
        "7:1:1",
        "\0",
        "a\0b",
        "é\u{202e}",
        "/",
    ];
    match rng.below(16) {
        0 => "x".repeat(rng.below(9_000) as usize),
        1..=4 => uuid::Uuid::from_u128(u128::from(rng.below(4))).to_string(),
        5 => format!("{}:{}:{}", number(rng), number(rng), number(rng)),
        _ => SHORT[rng.below(SHORT.len() as u64) as usize].to_owned(),
    }
}

fn bytes(rng: &mut Rng) -> Vec<u8> {
    match rng.below(8) {
        0 => (0..rng.below(40)).map(|_| rng.next_u64() as u8).collect(),
        1 => uuid::Uuid::from_u128(u128::from(rng.below(4))).into_bytes().to_vec(),
        2 => message("quorate.command.v1.Refusal", rng),
        _ => text(rng).into_bytes(),
    }
}

#[test]
fn every_message_can_be_made_and_read() {
    let names = every_message();
    assert!(names.len() > 100, "{}", names.len());
    let mut rng = Rng::new(1);
    for name in names {
        let descriptor = POOL.get_message_by_name(&name).expect("it is listed");
        for _ in 0..5 {
            let bytes = message(&name, &mut rng);
            let read = DynamicMessage::decode(descriptor.clone(), bytes.as_slice());
            assert_eq!(read.expect("it was just written").descriptor(), descriptor);
        }
    }
}
