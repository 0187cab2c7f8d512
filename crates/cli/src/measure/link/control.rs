//! What the two ends of a measured link tell each other besides: lines of JSON, over a pipe or a connection of their
//! own.
//!
//! Leaves out the link itself: its port is on the address this conversation is held on.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use super::Exercise;

/// Bytes of a line; what is longer is not said by fresco.
const LINE_BYTES: u64 = 4 << 10;

/// What is said.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Line {
    /// Said first, by both: the program's version, and where its port is.
    Hello { version: String, port: String },
    /// Play your part of this.
    Play { epoch: u64, exercise: Exercise },
    /// It was played, and took this much processor time.
    Played { cpu_s: f64 },
    /// It was not.
    Failed { reason: String },
}

/// One end of the conversation.
pub(crate) struct Control {
    from: Box<dyn BufRead>,
    to: Box<dyn Write>,
    /// The address of this machine the other end reaches.
    ip: IpAddr,
}

impl Control {
    /// A second process of this program at the other end; it ends with what is returned.
    pub(crate) fn spawn(arguments: &[&str]) -> Result<(Self, Peer)> {
        let program = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start a second process")?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let peer = Peer(child);
        let (to, from): (ChildStdin, ChildStdout) = pipes.ok_or_else(|| anyhow!("the second process has no pipes"))?;
        Ok((Self::new(from, to, Ipv4Addr::LOCALHOST.into()), peer))
    }

    /// The first process, from within the second one.
    pub(crate) fn of_stdio() -> Self {
        Self::new(std::io::stdin(), std::io::stdout(), Ipv4Addr::LOCALHOST.into())
    }

    /// Another machine's process.
    pub(crate) fn of_connection(connection: TcpStream) -> Result<Self> {
        let ip = connection.local_addr()?.ip();
        Ok(Self::new(connection.try_clone()?, connection, ip))
    }

    fn new(from: impl Read + 'static, to: impl Write + 'static, ip: IpAddr) -> Self {
        Self { from: Box::new(BufReader::new(from)), to: Box::new(to), ip }
    }

    /// Where a port is bound that the other end is to reach.
    pub(crate) fn port_address(&self) -> String {
        format!("http://{}", SocketAddr::new(self.ip, 0))
    }

    pub(crate) fn write(&mut self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        let written = self.to.write_all(text.as_bytes()).and_then(|()| self.to.flush());
        written.context("the other end is gone")
    }

    /// What the other end says next; nothing once it has ended.
    pub(crate) fn read(&mut self) -> Result<Option<Line>> {
        let mut text = String::new();
        (&mut self.from).take(LINE_BYTES).read_line(&mut text).context("the other end is gone")?;
        if text.is_empty() {
            return Ok(None);
        }
        let line = serde_json::from_str(&text).with_context(|| format!("the other end said {:?}", text.trim_end()))?;
        Ok(Some(line))
    }
}

/// The second process.
pub(crate) struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        // It ends by itself once its input does; one that hangs is not waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
