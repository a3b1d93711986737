//! From the table to a filter: the program that the kernel runs before each system call of a thread.
//!
//! ```text
//!   arch? ─▶ number ─▶ often called? ─▶ below or above? ─▶ ... ─▶ this call? ─▶ its rows, one after another
//!     │                    │ in order       └ a search by halves                      │ none fits
//!     └▶ kill              └▶ its rows                                                └▶ refused
//! ```
//!
//! The language is classic BPF: a load, a comparison with two ways on, a return. The crate seccompiler makes the
//! instructions for one call and its arguments. Here they are put into an order: seccompiler's own is one comparison after
//! another by the calls' numbers, and the kernel runs each new filter once for each of its 450 calls, to find those that
//! are allowed whatever their arguments (seccomp_cache_prepare in kernel/seccomp.c; these cost nothing later). With a
//! search by halves this is a small part of a start.

use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};
use syscalls::Sysno;

use super::Role;
use super::table::{Answer, OFTEN, Pin, Row, TABLE};

/// Instructions with which seccompiler's programs begin: load and compare the architecture, kill, load the
/// number of the call.
const BEGINNING: usize = 4;
/// So many calls are compared one after another.
const FEW: usize = 4;

const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;

/// A filter.
pub type Program = Vec<sock_filter>;

/// What the instructions for one call are, and its number.
struct Part {
    number: u32,
    code: Program,
}

/// The filter of `role`. A call that no row allows has the result `refused`, one of the SECCOMP_RET values.
///
/// # Errors
/// What seccompiler has against a row of the table, and that is none that a user could change.
pub fn program(role: Role, refused: u32) -> Result<Program, seccompiler::BackendError> {
    let mut beginning = None;
    let mut often = Vec::new();
    let mut seldom = Vec::new();
    let mut calls: Vec<Sysno> = rows(role).map(|row| row.call).collect();
    calls.sort_by_key(|call| call.id());
    calls.dedup();
    for call in calls {
        let mut code = compiled(role, call)?;
        let part = Part {
            number: u32::try_from(call.id()).unwrap_or(u32::MAX),
            code: code.split_off(BEGINNING.min(code.len())),
        };
        beginning.get_or_insert(code);
        match OFTEN.contains(&call) {
            true => often.push(part),
            false => seldom.push(part),
        }
    }
    often.sort_by_key(|part| {
        OFTEN
            .iter()
            .position(|call| u32::try_from(call.id()) == Ok(part.number))
    });
    let mut program = beginning.unwrap_or_default();
    program.extend(often.into_iter().flat_map(|part| part.code));
    program.extend(search(&seldom));
    for instruction in &mut program {
        if instruction.code == RETURN && instruction.k == libc::SECCOMP_RET_TRAP {
            instruction.k = refused;
        }
    }
    Ok(program)
}

fn rows(role: Role) -> impl Iterator<Item = &'static Row> {
    TABLE.iter().filter(move |row| row.is_for(role))
}

/// seccompiler's program for one call, but for its last instruction, which is what becomes of any other call.
fn compiled(role: Role, call: Sysno) -> Result<Program, seccompiler::BackendError> {
    let mut rules = Vec::new();
    let mut answer = Answer::Allow;
    for row in rows(role).filter(|row| row.call == call) {
        answer = row.answer;
        // A row without pins allows all that others with pins do.
        if row.pins.is_empty() {
            rules.clear();
            break;
        }
        rules.extend(rules_of(row)?);
    }
    let filter = SeccompFilter::new(
        std::iter::once((i64::from(call.id()), rules)).collect(),
        SeccompAction::Trap,
        match answer {
            Answer::Allow => SeccompAction::Allow,
            Answer::Fail(errno) => SeccompAction::Errno(errno.into()),
        },
        TargetArch::x86_64,
    )?;
    let mut program: Program = filter.try_into()?;
    program.pop();
    Ok(program)
}

/// A rule for each way in which a row can be met: all of its pins, with each value that these allow.
fn rules_of(row: &Row) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let mut ways: Vec<Vec<SeccompCondition>> = vec![Vec::new()];
    for pin in row.pins {
        let conditions = conditions(*pin)?;
        ways = ways
            .iter()
            .flat_map(|way| {
                conditions
                    .iter()
                    .map(|condition| way.iter().chain([condition]).cloned().collect())
            })
            .collect();
    }
    ways.into_iter().map(SeccompRule::new).collect()
}

/// Of these, one has to hold.
fn conditions(pin: Pin) -> Result<Vec<SeccompCondition>, seccompiler::BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    use SeccompCmpOp::{Eq, MaskedEq, Ne};
    let one = |at, len, operator, value| Ok(vec![SeccompCondition::new(at, len, operator, value)?]);
    match pin {
        Pin::Is(at, values) => values
            .iter()
            .map(|value| SeccompCondition::new(at, Dword, Eq, *value))
            .collect(),
        Pin::IsNot(at, value) => one(at, Dword, Ne, value),
        Pin::IsAll(at, value) => one(at, Qword, Eq, value),
        Pin::Without(at, bits) => one(at, Dword, MaskedEq(bits), 0),
        Pin::With(at, bits) => one(at, Dword, MaskedEq(bits), bits),
        Pin::OurProcess(at) => one(at, Dword, Eq, std::process::id().into()),
    }
}

/// Finds the call among `parts`, which are in the order of their numbers, by halves. The number is loaded; a part loads
/// something else only when the call is its own, and then it ends in a result.
fn search(parts: &[Part]) -> Program {
    let (below, above) = parts.split_at(parts.len() / 2);
    let Some(first_above) = above.first().filter(|_| parts.len() > FEW) else {
        let mut program: Program = parts.iter().flat_map(|part| part.code.clone()).collect();
        program.push(instruction(RETURN, 0, libc::SECCOMP_RET_TRAP));
        return program;
    };
    let below = search(below);
    // A conditional jump is 255 instructions long at the most, so it jumps over one that can be longer.
    let mut program = vec![
        instruction(AT_LEAST, 1, first_above.number),
        instruction(JUMP, 0, u32::try_from(below.len()).unwrap_or(u32::MAX)),
    ];
    program.extend(below);
    program.extend(search(above));
    program
}

/// An instruction; a comparison goes on with the next one where it holds, and leaves out `jf` of them where not.
fn instruction(code: u16, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: u32 = libc::SECCOMP_RET_TRAP;
    /// AUDIT_ARCH_X86_64 and AUDIT_ARCH_I386 (linux/audit.h).
    const X86_64: u32 = 0xc000_003e;
    const I386: u32 = 0x4000_0003;

    /// What the kernel would do: its interpreter of classic BPF, as far as filters use it. Also how many
    /// instructions that took.
    fn run(program: &Program, arch: u32, number: u32, args: [u64; 6]) -> (u32, usize) {
        let mut data = Vec::new();
        data.extend(number.to_ne_bytes());
        data.extend(arch.to_ne_bytes());
        data.extend(0u64.to_ne_bytes());
        args.iter().for_each(|arg| data.extend(arg.to_ne_bytes()));
        let (mut at, mut a) = (0, 0u32);
        for steps in 1.. {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let branch = |holds| usize::from(if holds { jt } else { jf });
            match u32::from(code) {
                0x20 => a = u32::from_ne_bytes(data[k as usize..][..4].try_into().unwrap()),
                0x54 => a &= k,
                0x05 => at += k as usize,
                0x15 => at += branch(a == k),
                0x25 => at += branch(a > k),
                0x35 => at += branch(a >= k),
                0x06 => return (k, steps),
                other => panic!("an instruction {other:#x}"),
            }
        }
        unreachable!()
    }

    /// What the table says.
    fn expected(role: Role, number: u32, args: [u64; 6]) -> u32 {
        let fits = |pin: &Pin| match *pin {
            Pin::Is(at, values) => values.contains(&u64::from(args[usize::from(at)] as u32)),
            Pin::IsNot(at, value) => args[usize::from(at)] as u32 != value as u32,
            Pin::IsAll(at, value) => args[usize::from(at)] == value,
            Pin::Without(at, bits) => args[usize::from(at)] & bits == 0,
            Pin::With(at, bits) => args[usize::from(at)] & bits == bits,
            Pin::OurProcess(at) => args[usize::from(at)] as u32 == std::process::id(),
        };
        let row = TABLE.iter().find(|row| {
            row.call.id() as u32 == number && row.is_for(role) && row.pins.iter().all(fits)
        });
        match row.map(|row| row.answer) {
            None => REFUSED,
            Some(Answer::Allow) => libc::SECCOMP_RET_ALLOW,
            Some(Answer::Fail(errno)) => libc::SECCOMP_RET_ERRNO | u32::from(errno),
        }
    }

    /// Numbers that mean something to some pin, and those beside them.
    fn telling() -> Vec<u64> {
        let mut values = vec![
            0,
            1,
            2,
            4,
            7,
            u64::MAX,
            1 << 32,
            1 << 12,
            std::process::id().into(),
        ];
        for pin in TABLE.iter().flat_map(|row| row.pins) {
            match *pin {
                Pin::Is(_, is) => values.extend(is),
                Pin::IsNot(_, value)
                | Pin::IsAll(_, value)
                | Pin::Without(_, value)
                | Pin::With(_, value) => values.push(value),
                Pin::OurProcess(_) => {}
            }
        }
        let beside = |value: &u64| [*value, value ^ 1, value | 1 << 40];
        let mut values: Vec<_> = values.iter().flat_map(beside).collect();
        values.sort_unstable();
        values.dedup();
        values
    }

    #[test]
    fn a_filter_does_what_the_table_says() {
        let values = telling();
        for role in Role::ALL {
            let program = program(role, REFUSED).unwrap();
            assert!(program.len() < 4096, "{role:?}");
            let mut allowed = 0;
            for number in 0..600 {
                for at in 0..3 {
                    for value in &values {
                        let mut args = [0; 6];
                        args[at] = *value;
                        let (result, _) = run(&program, X86_64, number, args);
                        assert_eq!(
                            result,
                            expected(role, number, args),
                            "{role:?} {number} {args:x?}"
                        );
                        allowed += usize::from(result == libc::SECCOMP_RET_ALLOW);
                    }
                }
            }
            assert!(allowed > 0, "{role:?}");
        }
    }

    #[test]
    fn calls_of_another_architecture_end_the_program() {
        let program = program(Role::Main, REFUSED).unwrap();
        let (result, _) = run(&program, I386, 4, [0; 6]);
        assert_eq!(result, libc::SECCOMP_RET_KILL_PROCESS);
        // x32: a call's number with a bit above it.
        let write = Sysno::write.id() as u32;
        assert_eq!(
            run(&program, X86_64, write, [0; 6]).0,
            libc::SECCOMP_RET_ALLOW
        );
        assert_eq!(
            run(&program, X86_64, write | 0x4000_0000, [0; 6]).0,
            REFUSED
        );
    }

    #[test]
    fn the_guest_is_entered_after_few_instructions() {
        let program = program(Role::Vcpu, REFUSED).unwrap();
        let (result, steps) = run(
            &program,
            X86_64,
            Sysno::ioctl.id() as u32,
            [7, 0xae80, 0, 0, 0, 0],
        );
        assert_eq!(result, libc::SECCOMP_RET_ALLOW);
        assert!(steps <= 10, "{steps}");
    }

    /// What a program that has been taken over would want.
    #[test]
    fn nobody_may_open_connect_or_execute() {
        for role in Role::ALL {
            let program = program(role, REFUSED).unwrap();
            for call in [
                Sysno::open,
                Sysno::openat,
                Sysno::openat2,
                Sysno::creat,
                Sysno::socket,
                Sysno::connect,
                Sysno::sendmsg,
                Sysno::execve,
                Sysno::execveat,
                Sysno::fork,
                Sysno::vfork,
                Sysno::ptrace,
                Sysno::process_vm_readv,
                Sysno::process_vm_writev,
                Sysno::tkill,
                Sysno::unlink,
                Sysno::unlinkat,
                Sysno::rename,
                Sysno::renameat2,
                Sysno::linkat,
                Sysno::mount,
                Sysno::bpf,
                Sysno::setuid,
                Sysno::memfd_create,
                Sysno::pidfd_getfd,
                Sysno::userfaultfd,
                Sysno::chmod,
            ] {
                let (result, _) = run(&program, X86_64, call.id() as u32, [0; 6]);
                assert_eq!(result, REFUSED, "{role:?} {}", call.name());
            }
            let (executable, _) = run(
                &program,
                X86_64,
                Sysno::mmap.id() as u32,
                [0, 4096, 5, 0, 0, 0],
            );
            assert_eq!(executable, REFUSED, "{role:?}");
            let fork = libc::SIGCHLD as u64;
            let (forked, _) = run(
                &program,
                X86_64,
                Sysno::clone.id() as u32,
                [fork, 0, 0, 0, 0, 0],
            );
            assert_eq!(forked, REFUSED, "{role:?}");
        }
    }
}
