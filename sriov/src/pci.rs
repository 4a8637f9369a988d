//! The address of a PCI function.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Error;

/// `domain:bus:device.function` in hexadecimal, such as 0000:01:10.2. The domain has at least four digits (more behind
/// an Intel VMD). The text form is what sysfs uses: lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl TryFrom<&str> for PciAddress {
    type Error = Error;

    fn try_from(text: &str) -> Result<Self, Error> {
        parse(text).ok_or_else(|| Error::BadPci { text: text.to_owned() })
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let (domain, rest) = text.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    let hex = |digits: &str, least: usize, most: usize| {
        let right = (least..=most).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
        right.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
    };
    let address = PciAddress {
        domain: hex(domain, 4, 8)?,
        bus: u8::try_from(hex(bus, 2, 2)?).ok()?,
        device: u8::try_from(hex(device, 2, 2)?).ok()?,
        function: u8::try_from(hex(function, 1, 1)?).ok()?,
    };
    (address.device < 32 && address.function < 8).then_some(address)
}

impl TryFrom<String> for PciAddress {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        Self::try_from(text.as_str())
    }
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_strictly_and_printed_as_sysfs_does() {
        for (text, printed) in
            [("0000:01:10.2", "0000:01:10.2"), ("0000:AF:1F.7", "0000:af:1f.7"), ("10000:e1:00.0", "10000:e1:00.0")]
        {
            assert_eq!(PciAddress::try_from(text).unwrap().to_string(), printed);
        }
        for bad in ["", "01:10.2", "0000:01:10", "0000:01:20.0", "0000:01:10.8", "0000:1:10.2", "0000:01:10.2 ", "../x"]
        {
            assert!(matches!(PciAddress::try_from(bad), Err(Error::BadPci { text }) if text == bad), "{bad:?}");
        }
    }
}
