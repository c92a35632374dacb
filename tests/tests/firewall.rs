//! The firewall plugin on hosts of the test's own, with real traffic.
//!
//! What is looked at: which packets pass, what `iptables` and `nft` say, and what is left when it is over.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use netns_tests::lab::{CLIENT, HOST};
use netns_tests::traffic::BRIEFLY;
use netns_tests::{
    Container, End, Fetch, Host, Lab, Netns, Outcome, Plugin, Proto, Server, Target, Verb, connect, serve,
};
use serde_json::{Value, json};

const VERSION: &str = "1.1.0";

/// A container with its configuration and a server on port 80.
struct Tenant {
    container: Container,
    config: Value,
    _server: Server,
}

impl Tenant {
    fn new(lab: &Lab, n: u8, keys: Value) -> Tenant {
        let container = lab.container(n);
        lab.host.wait_until("the bridge is up", || lab.host.run("ip -o link show cni0").contains("state UP"));
        Tenant::of(container, &format!("container {n}"), keys)
    }

    fn of(container: Container, token: &str, keys: Value) -> Tenant {
        let server = serve(&container.netns, 80, token);
        let mut config = json!({
            "cniVersion": VERSION, "name": "net", "type": "firewall", "prevResult": container.prev_result(VERSION),
        });
        config.as_object_mut().unwrap().extend(keys.as_object().cloned().unwrap_or_default());
        Tenant { container, config, _server: server }
    }

    fn call(&self, lab: &Lab, verb: Verb) -> Outcome {
        call(&lab.host, verb, &self.config, &self.container.target())
    }

    #[track_caller]
    fn add(&self, lab: &Lab) {
        let result = self.call(lab, Verb::Add).succeeds();
        assert_eq!(result["ips"], self.config["prevResult"]["ips"], "the result is prevResult");
    }

    #[track_caller]
    fn check(&self, lab: &Lab) {
        self.call(lab, Verb::Check).succeeds();
    }

    #[track_caller]
    fn del(&self, lab: &Lab) {
        self.call(lab, Verb::Del).succeeds();
    }

    /// The container's two addresses with a port.
    fn at(&self, port: u16) -> [String; 2] {
        let [v4, v6] = &self.container.addresses;
        [format!("{v4}:{port}"), format!("[{v6}]:{port}")]
    }
}

#[track_caller]
fn call(host: &Host, verb: Verb, config: &Value, target: &Target) -> Outcome {
    Plugin::ours("firewall").call(host, verb, config, target)
}

/// The client's addresses with a port.
fn client(port: u16) -> [String; 2] {
    let [v4, v6] = CLIENT;
    [format!("{v4}:{port}"), format!("[{v6}]:{port}")]
}

fn host_at(port: u16) -> [String; 2] {
    let [v4, v6] = HOST;
    [format!("{v4}:{port}"), format!("[{v6}]:{port}")]
}

#[track_caller]
fn reaches(from: &Netns, to: &[String; 2], token: &str) {
    for (address, proto) in to.iter().flat_map(|a| Proto::ALL.map(|p| (a, p))) {
        Fetch::new(proto, address).expect(from, token);
    }
}

#[track_caller]
fn is_cut_off(from: &Netns, to: &[String; 2]) {
    for address in to {
        Fetch::new(Proto::Tcp, address).expect_nothing(from);
    }
}

/// A host that drops what it forwards, with a server at the client.
fn dropping_lab() -> (Lab, Server) {
    let lab = Lab::new();
    lab.host.drop_forwarded();
    let server = serve(&lab.client, 80, "client");
    (lab, server)
}

#[test]
fn a_container_gets_out_of_a_host_that_drops_and_nobody_gets_in_unasked() {
    let (lab, _server) = dropping_lab();
    let tenant = Tenant::new(&lab, 2, json!({}));
    is_cut_off(&tenant.container.netns, &client(80));

    tenant.add(&lab);
    reaches(&tenant.container.netns, &client(80), "client");
    is_cut_off(&lab.client, &tenant.at(80));

    tenant.del(&lab);
    is_cut_off(&tenant.container.netns, &client(80));
}

#[test]
fn a_published_port_is_reached_through_a_host_that_drops() {
    let (lab, _server) = dropping_lab();
    let tenant = Tenant::new(&lab, 2, json!({}));
    let [v4, v6] = &tenant.container.addresses;
    lab.host.nft(&format!(
        "table inet published {{ chain pre {{ type nat hook prerouting priority dstnat;\n\
         ip daddr {} tcp dport 8080 dnat ip to {v4}:80\n ip6 daddr {} tcp dport 8080 dnat ip6 to [{v6}]:80\n\
         ip daddr {} udp dport 8080 dnat ip to {v4}:80\n ip6 daddr {} udp dport 8080 dnat ip6 to [{v6}]:80\n }}\n }}",
        HOST[0], HOST[1], HOST[0], HOST[1]
    ));
    is_cut_off(&lab.client, &host_at(8080));
    tenant.add(&lab);
    reaches(&lab.client, &host_at(8080), "container 2");
    is_cut_off(&lab.client, &tenant.at(80));
}

#[test]
fn what_our_portmap_publishes_is_reached_through_a_host_that_drops_unless_the_administrator_says_no() {
    let (lab, _server) = dropping_lab();
    let tenant = Tenant::new(&lab, 2, json!({}));
    let mut portmap = tenant.config.clone();
    portmap["type"] = "portmap".into();
    let mappings = ["tcp", "udp"].map(|proto| json!({"hostPort": 8080, "containerPort": 80, "protocol": proto}));
    portmap["runtimeConfig"] = json!({"portMappings": mappings});
    Plugin::ours("portmap").call(&lab.host, Verb::Add, &portmap, &tenant.container.target()).succeeds();
    is_cut_off(&lab.client, &host_at(8080));
    tenant.add(&lab);
    reaches(&lab.client, &host_at(8080), "container 2");
    is_cut_off(&lab.client, &tenant.at(80));
    for (iptables, address) in ["iptables", "ip6tables"].iter().zip(CLIENT) {
        lab.host.run(&format!("{iptables} -w -A CNI-ADMIN -s {address} -j DROP"));
    }
    is_cut_off(&lab.client, &host_at(8080));
}

#[test]
fn iptables_goes_on_working_on_its_tables() {
    let (lab, _server) = dropping_lab();
    let tenant = Tenant::new(&lab, 2, json!({}));
    tenant.add(&lab);
    for iptables in ["iptables", "ip6tables"] {
        let rules = lab.host.run(&format!("{iptables} -w -S"));
        for line in [
            "-P FORWARD DROP",
            "-A FORWARD -m comment --comment \"CNI firewall plugin rules\" -j CNI-FORWARD",
            "-A CNI-FORWARD -m comment --comment \"CNI firewall plugin admin overrides\" -j CNI-ADMIN",
            "-A CNI-FORWARD -m mark --mark 0x1000/0x1000 -m comment --comment \"CNI firewall plugin: admitted\" -j ACCEPT",
        ] {
            assert!(rules.lines().any(|l| l == line), "{iptables} -S lacks {line}:\n{rules}");
        }
        assert!(lab.host.run(&format!("{iptables} -w -L -v -n")).contains("mark match 0x1000/0x1000"));
        // Save and restore, and the rules are still those that CHECK wants.
        let saved = lab.host.run(&format!("{iptables}-save"));
        lab.host.pipe(&format!("{iptables}-restore"), &saved).unwrap();
        assert_eq!(lab.host.run(&format!("{iptables} -w -S")), rules);
    }
    tenant.check(&lab);
    tenant.add(&lab);
    for iptables in ["iptables", "ip6tables"] {
        let rules = lab.host.run(&format!("{iptables} -w -S"));
        assert_eq!(rules.matches("-j CNI-FORWARD").count(), 1, "nothing is doubled:\n{rules}");
        for rule in ["FORWARD -j CNI-FORWARD", "CNI-FORWARD -j CNI-ADMIN"] {
            let (chain, target) = rule.split_once(" -j ").unwrap();
            let comment = if chain == "FORWARD" { "rules" } else { "admin overrides" };
            let mut command = lab.host.command(iptables);
            command.args(["-w", "-D", chain, "-m", "comment", "--comment", &format!("CNI firewall plugin {comment}")]);
            assert!(command.args(["-j", target]).status().unwrap().success(), "{iptables} -D {rule}");
        }
        lab.host.run(&format!("{iptables} -w -F"));
        lab.host.run(&format!("{iptables} -w -X"));
    }
}

#[test]
fn the_rules_are_those_that_iptables_writes_itself() {
    let (ours, theirs) = (Lab::new(), Host::new());
    let tenant = Tenant::new(&ours, 2, json!({}));
    tenant.add(&ours);
    for iptables in ["iptables", "ip6tables"] {
        let script = ours.host.run(&format!("{iptables}-save"));
        theirs.pipe(&format!("{iptables}-restore"), &script).unwrap();
    }
    // The kernel's expressions, chain by chain. iptables-restore makes INPUT and OUTPUT too, and writes a comment as an
    // expression of its own, where ours is userdata.
    let expressions = |host: &Host, chain: &str| -> Vec<String> {
        let listing = host.run(&format!("nft --debug=netlink list chain {chain}"));
        let netlink = listing.lines().filter(|l| l.trim_start().starts_with('[') && !l.contains("match name comment"));
        netlink.map(|l| l.trim().to_owned()).collect()
    };
    for chain in ["ip filter FORWARD", "ip filter CNI-FORWARD", "ip6 filter FORWARD", "ip6 filter CNI-FORWARD"] {
        let ours = expressions(&ours.host, chain);
        assert!(!ours.is_empty(), "{chain}");
        assert_eq!(ours, expressions(&theirs, chain), "{chain}");
    }
}

#[test]
fn add_is_repeatable_and_changes_nothing_the_second_time() {
    let (lab, _server) = dropping_lab();
    let tenant = Tenant::new(&lab, 2, json!({}));
    tenant.add(&lab);
    let before = lab.host.snapshot();
    tenant.add(&lab);
    tenant.check(&lab);
    lab.host.assert_same_as(&before);
}

#[test]
fn del_without_prev_result_removes_all_that_the_attachment_owns() {
    let (lab, _server) = dropping_lab();
    let (stays, goes) = (Tenant::new(&lab, 2, json!({})), Tenant::new(&lab, 3, json!({})));
    stays.add(&lab);
    let before = lab.host.snapshot();
    goes.add(&lab);
    let mut bare = goes.config.clone();
    bare.as_object_mut().unwrap().remove("prevResult");
    for _ in 0..2 {
        call(&lab.host, Verb::Del, &bare, &goes.container.target().without_netns()).succeeds();
        lab.host.assert_same_as(&before);
    }
    reaches(&stays.container.netns, &client(80), "client");
}

#[test]
fn a_late_del_leaves_the_addresses_new_owner_connected() {
    let (lab, _server) = dropping_lab();
    let new = Tenant::new(&lab, 2, json!({}));
    // The old container had the same addresses and is long gone.
    let old = Target::new("old-container", "", "eth0");
    let mut target = old.clone();
    target.netns = new.container.netns.path();
    call(&lab.host, Verb::Add, &new.config, &target).succeeds();
    new.add(&lab);
    new.check(&lab);
    call(&lab.host, Verb::Del, &new.config, &old).succeeds();
    new.check(&lab);
    reaches(&new.container.netns, &client(80), "client");
    assert!(!lab.host.run("nft list ruleset").contains("old-container"));
}

#[test]
fn administrators_overrides_stand_before_the_acceptance() {
    let (lab, _server) = dropping_lab();
    let tenant = Tenant::new(&lab, 2, json!({"iptablesAdminChainName": "MY-OVERRIDES"}));
    tenant.add(&lab);
    reaches(&tenant.container.netns, &client(80), "client");
    lab.host.run(&format!("iptables -w -A MY-OVERRIDES -d {} -j DROP", CLIENT[0]));
    lab.host.run(&format!("ip6tables -w -A MY-OVERRIDES -d {} -j DROP", CLIENT[1]));
    is_cut_off(&tenant.container.netns, &client(80));
    tenant.add(&lab);
    tenant.check(&lab);
    is_cut_off(&tenant.container.netns, &client(80));
}

#[test]
fn only_the_families_in_use_are_touched() {
    let (lab, _server) = dropping_lab();
    let mut tenant = Tenant::new(&lab, 2, json!({}));
    let before6 = lab.host.run("nft list table ip6 filter");
    tenant.config["prevResult"]["ips"].as_array_mut().unwrap().pop();
    tenant.add(&lab);
    tenant.check(&lab);
    Fetch::new(Proto::Tcp, &client(80)[0]).expect(&tenant.container.netns, "client");
    assert_eq!(lab.host.run("nft list table ip6 filter"), before6);
}

#[test]
fn the_mark_is_gone_behind_the_filters_and_admits_nothing_from_elsewhere() {
    let (lab, _server) = dropping_lab();
    let tenant = Tenant::new(&lab, 2, json!({}));
    tenant.add(&lab);
    lab.host.nft(
        "table inet test { chain post { type filter hook postrouting priority 0; meta mark & 0x1000 == 0x1000 counter; }\n\
         chain pre { type filter hook prerouting priority -300; iifname ext0 meta mark set meta mark | 0x1000; }; }",
    );
    reaches(&tenant.container.netns, &client(80), "client");
    is_cut_off(&lab.client, &tenant.at(80));
    assert!(lab.host.run("nft list chain inet test post").contains("counter packets 0 "));
}

#[test]
fn another_mark_bit_takes_the_place_of_the_former_one() {
    let (lab, _server) = dropping_lab();
    let mut former = Tenant::new(&lab, 2, json!({}));
    former.add(&lab);
    let keys = json!({"markAdmitBit": 20});
    let latter = Tenant::new(&lab, 3, keys.clone());
    latter.add(&lab);
    former.config.as_object_mut().unwrap().extend(keys.as_object().cloned().unwrap());
    for tenant in [&former, &latter] {
        tenant.check(&lab);
        reaches(&tenant.container.netns, &client(80), "client");
    }
    for iptables in ["iptables", "ip6tables"] {
        let rules = lab.host.run(&format!("{iptables} -w -S"));
        assert!(rules.contains("--mark 0x100000/0x100000") && !rules.contains("--mark 0x1000/0x1000"), "{rules}");
    }
}

/// What CHECK must say something about, by what an administrator might do.
const DAMAGES: [(&str, &str); 17] = [
    ("nft flush ruleset", "cni_chain_firewall"),
    ("iptables -w -F", "ip filter FORWARD"),
    ("ip6tables -w -F FORWARD", "ip6 filter FORWARD"),
    ("iptables -w -F CNI-FORWARD", "ip filter CNI-FORWARD"),
    ("iptables -w -D CNI-FORWARD 1", "CNI-ADMIN"),
    ("iptables -w -D CNI-FORWARD 2", "accept"),
    ("nft flush set inet cni_chain_firewall addresses4", "10.88.0.2"),
    ("nft flush chain inet cni_chain_firewall forward", "forward"),
    ("nft delete chain inet cni_chain_firewall cleared", "cleared"),
    ("nft flush chain inet cni_chain_firewall admitted", "admitted"),
    ("nft flush map inet cni_chain_firewall records", "container-2"),
    ("nft add rule inet cni_chain_firewall to_container accept", "to_container"),
    ("nft add chain inet cni_chain_firewall forward { policy drop ; }", "policy drop"),
    ("nft add chain inet cni_chain_firewall more { type filter hook forward priority 7 ; policy drop ; }", "more"),
    ("nft add element inet cni_chain_firewall isolated { cni0 }", "isolated"),
    ("nft add element inet cni_chain_firewall same_bridge { elsewhere }", "same_bridge"),
    ("nft add element inet cni_chain_firewall within_same_bridge { cni0 . cni1 }", "within_same_bridge"),
];

/// What `nft` lists, whatever the order in which chains were made.
fn sorted_rules(host: &Host) -> Vec<String> {
    let mut lines: Vec<String> = host.run("nft --stateless list ruleset").lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn check_sees_every_loss_and_the_next_add_mends_it() {
    for (damage, named) in DAMAGES {
        let (lab, _server) = dropping_lab();
        let tenant = Tenant::new(&lab, 2, json!({}));
        tenant.add(&lab);
        tenant.check(&lab);
        let before = sorted_rules(&lab.host);
        lab.host.run(damage);
        let damaged = lab.host.snapshot();
        let error = tenant.call(&lab, Verb::Check).fails_with(101);
        assert!(error.details.contains(named), "after {damage}, CHECK says: {}", error.details);
        lab.host.assert_same_as(&damaged);
        tenant.add(&lab);
        tenant.check(&lab);
        if damage == "nft flush ruleset" {
            lab.host.drop_forwarded();
        }
        assert_eq!(sorted_rules(&lab.host), before, "after {damage}");
        reaches(&tenant.container.netns, &client(80), "client");
    }
}

#[test]
fn check_names_a_rule_that_drops_all_in_front_of_ours_and_minds_no_business_of_the_administrator() {
    for kind in ["", "-legacy"] {
        let lab = Lab::new();
        lab.host.drop_forwarded_by(if kind.is_empty() { "nft" } else { "legacy" });
        let _server = serve(&lab.client, 80, "client");
        let tenant = Tenant::new(&lab, 2, json!({}));
        tenant.add(&lab);
        let iptables =
            |n: usize, line: &str| lab.host.run(&format!("{}{kind} -w {line}", ["iptables", "ip6tables"][n]));
        // Rules with a condition, and what is in CNI-ADMIN.
        iptables(0, "-I FORWARD 1 -s 203.0.113.7 -j DROP");
        iptables(0, "-I FORWARD 2 -m conntrack --ctstate INVALID -j DROP");
        iptables(0, "-A FORWARD -j DROP");
        iptables(0, "-A CNI-ADMIN -d 203.0.113.7 -j DROP");
        tenant.check(&lab);
        reaches(&tenant.container.netns, &client(80), "client");
        iptables(1, "-A CNI-ADMIN -j DROP");
        tenant.check(&lab);
        iptables(1, "-F CNI-ADMIN");
        for (n, line, named) in [
            (0, "-I FORWARD 2 -j DROP", "rule 2"),
            (1, "-I FORWARD 1 -m comment --comment nobody -j REJECT", "rule 1"),
            (0, "-I CNI-FORWARD 2 -j DROP", "rule 2"),
            (1, "-I CNI-FORWARD 1 -j REJECT", "rule 1"),
        ] {
            iptables(n, line);
            let error = tenant.call(&lab, Verb::Check).fails_with(101);
            let version = if kind.is_empty() { ["ip ", "ip6 "][n] } else { ["iptables", "ip6tables"][n] };
            let chain = line.split(' ').nth(1).unwrap();
            assert!(error.details.contains(named) && error.details.contains(chain), "{kind} {line}: {error:?}");
            assert!(
                error.details.contains(version) && error.details.contains("in front of"),
                "{kind} {line}: {error:?}"
            );
            let added = tenant.call(&lab, Verb::Add);
            added.succeeds();
            assert!(added.stderr.contains(named), "ADD names it too: {}", added.stderr);
            Fetch::new(Proto::Tcp, &client(80)[n]).expect_nothing(&tenant.container.netns);
            // It is nobody's but who has put it there.
            iptables(n, &line.replacen("-I", "-D", 1).replacen(&format!(" {} ", &named[5..]), " ", 1));
            tenant.check(&lab);
        }
        reaches(&tenant.container.netns, &client(80), "client");
    }
}

/// Three that claim one container's addresses, in the order of their ADDs.
fn claimants(tenant: &Tenant) -> Vec<(Value, Target)> {
    let claimant = |(network, id): (&str, &str)| {
        let mut config = tenant.config.clone();
        config["name"] = network.into();
        let mut target = tenant.container.target();
        target.container = id.into();
        (config, target)
    };
    [("net", "first"), ("other", "second"), ("net", "third")].into_iter().map(claimant).collect()
}

#[test]
fn whoever_of_several_owners_of_an_address_goes_the_others_stay_connected() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let (lab, _server) = dropping_lab();
        let tenant = Tenant::new(&lab, 2, json!({}));
        let neighbour = Tenant::new(&lab, 3, json!({}));
        neighbour.add(&lab);
        let before = sorted_rules(&lab.host);
        let all = claimants(&tenant);
        for (config, target) in &all {
            call(&lab.host, Verb::Add, config, target).succeeds();
        }
        for (n, gone) in order.into_iter().enumerate() {
            for other in &order[n..] {
                call(&lab.host, Verb::Check, &all[*other].0, &all[*other].1).succeeds();
            }
            reaches(&tenant.container.netns, &client(80), "client");
            call(&lab.host, Verb::Del, &all[gone].0, &all[gone].1.without_netns()).succeeds();
        }
        is_cut_off(&tenant.container.netns, &client(80));
        assert_eq!(sorted_rules(&lab.host), before, "{order:?}");
    }
}

#[test]
fn after_a_flush_and_by_gc_the_elder_owner_of_an_address_gets_it_back_too() {
    let (lab, _server) = dropping_lab();
    let tenant = Tenant::new(&lab, 2, json!({"antiSpoof": true}));
    let next = Tenant::new(&lab, 3, json!({}));
    let all = claimants(&tenant);
    for (config, target) in &all {
        call(&lab.host, Verb::Add, config, target).succeeds();
    }
    lab.host.run("nft flush ruleset");
    lab.host.drop_forwarded();
    next.add(&lab);
    for (config, target) in &all {
        call(&lab.host, Verb::Check, config, target).succeeds();
    }
    let gc = |network: &str, live: &[&str]| {
        let mut gc = json!({"cniVersion": VERSION, "name": network, "type": "firewall"});
        gc["cni.dev/valid-attachments"] = live.iter().map(|id| json!({"containerID": id, "ifname": "eth0"})).collect();
        call(&lab.host, Verb::Gc, &gc, &Target::new("", "", "")).succeeds();
    };
    gc("net", &["first", "container-3"]);
    for (config, target) in &all[..2] {
        call(&lab.host, Verb::Check, config, target).succeeds();
    }
    reaches(&tenant.container.netns, &client(80), "client");
    gc("other", &[]);
    call(&lab.host, Verb::Check, &all[0].0, &all[0].1).succeeds();
    reaches(&tenant.container.netns, &client(80), "client");
    // An ADD with other addresses gives them back as well.
    call(&lab.host, Verb::Add, &all[2].0, &all[2].1).succeeds();
    let mut moved = all[2].0.clone();
    moved["prevResult"]["ips"][0]["address"] = "10.88.0.77/24".into();
    moved["prevResult"]["ips"][1]["address"] = "fd00:88::77/64".into();
    call(&lab.host, Verb::Add, &moved, &all[2].1).succeeds();
    call(&lab.host, Verb::Check, &all[0].0, &all[0].1).succeeds();
    gc("net", &["container-3"]);
    is_cut_off(&tenant.container.netns, &client(80));
    assert!(!lab.host.run("nft list ruleset").contains("10.88.0.2 "));
}

#[test]
fn an_owner_that_lost_its_address_in_a_flush_gets_it_back_from_who_came_then() {
    let (lab, _server) = dropping_lab();
    let tenant = Tenant::new(&lab, 2, json!({}));
    let all = claimants(&tenant);
    call(&lab.host, Verb::Add, &all[0].0, &all[0].1).succeeds();
    lab.host.run("nft flush ruleset");
    lab.host.drop_forwarded();
    call(&lab.host, Verb::Add, &all[1].0, &all[1].1).succeeds();
    call(&lab.host, Verb::Check, &all[0].0, &all[0].1).succeeds();
    call(&lab.host, Verb::Del, &all[1].0, &all[1].1).succeeds();
    call(&lab.host, Verb::Check, &all[0].0, &all[0].1).succeeds();
    reaches(&tenant.container.netns, &client(80), "client");
}

#[test]
fn what_an_old_container_has_left_at_an_interface_does_not_restrict_the_new_one() {
    let (lab, _server) = dropping_lab();
    for which in ["iptables", "ip6tables"] {
        lab.host.set_sysctl(&format!("net/bridge/bridge-nf-call-{which}"), "0");
    }
    let mut old = Tenant::new(&lab, 2, json!({"ingressPolicy": "isolated", "antiSpoof": true}));
    let neighbour = Tenant::new(&lab, 3, json!({}));
    old.add(&lab);
    is_cut_off(&old.container.netns, &neighbour.at(80));
    // The same interface, and another container.
    let former = old.container.target();
    old.container.id = "new".into();
    let former_config = old.config.clone();
    for key in ["ingressPolicy", "antiSpoof"] {
        old.config.as_object_mut().unwrap().remove(key);
    }
    old.add(&lab);
    old.check(&lab);
    reaches(&old.container.netns, &neighbour.at(80), "container 3");
    call(&lab.host, Verb::Del, &former_config, &former.without_netns()).succeeds();
    old.check(&lab);
    reaches(&old.container.netns, &client(80), "client");
    // A stranger may do the same later.
    lab.host.run("nft add element bridge cni_chain_firewall isolated_ports { veth2 }");
    let error = old.call(&lab, Verb::Check).fails_with(101);
    assert!(error.details.contains("isolated_ports"), "{error:?}");
    old.add(&lab);
    old.check(&lab);
    reaches(&old.container.netns, &neighbour.at(80), "container 3");
}

/// Deletes the first such line, whose text has this in it.
fn delete_record_line(lab: &Lab, line: usize, text: &str) {
    let records = lab.host.run("nft list map inet cni_chain_firewall records");
    let elements = records.split_once("elements = {").unwrap().1;
    let mut elements = elements.split(',').map(str::trim);
    let key = elements.find(|e| e.contains(&format!(". 0x{line:08x} ")) && e.contains(text));
    let key = key.unwrap().split(" comment").next().unwrap().split(" :").next().unwrap();
    lab.host.run(&format!("nft delete element inet cni_chain_firewall records {{ {key} }}"));
}

#[test]
fn del_removes_everything_though_a_line_of_the_record_was_removed_by_hand() {
    let (lab, _server) = dropping_lab();
    let keys = json!({"ingressPolicy": "isolated", "antiSpoof": true});
    let (goes, stays) = (Tenant::new(&lab, 2, keys.clone()), Tenant::new(&lab, 3, keys));
    stays.add(&lab);
    let before = sorted_rules(&lab.host);
    for (line, text) in [(0, "container-2"), (1, "10.88.0.2 ")] {
        for has_file in [true, false] {
            goes.add(&lab);
            delete_record_line(&lab, line, text);
            if !has_file {
                lab.host.run("rm -r /run/cni/firewall");
            }
            goes.del(&lab);
            assert_eq!(sorted_rules(&lab.host), before, "line {line}, file: {has_file}");
            is_cut_off(&goes.container.netns, &client(80));
            stays.add(&lab);
        }
    }
    stays.check(&lab);
    stays.del(&lab);
    assert!(!lab.host.run("nft list ruleset").contains("cni0"));
}

#[test]
fn a_record_of_which_a_line_was_removed_by_hand_is_whole_after_the_next_add() {
    let lab = Lab::new();
    let mut tenant = Tenant::new(&lab, 2, json!({"ingressPolicy": "isolated"}));
    for n in 0..12 {
        let address = json!({"interface": 2, "address": format!("fd00:1234:5678:9abc:def0:1234:5678:{n:x}/64")});
        tenant.config["prevResult"]["ips"].as_array_mut().unwrap().push(address);
    }
    tenant.add(&lab);
    let before = sorted_rules(&lab.host);
    for line in [0, 1, 2] {
        delete_record_line(&lab, line, "");
        tenant.call(&lab, Verb::Check).fails_with(101);
        tenant.add(&lab);
        tenant.check(&lab);
        assert_eq!(sorted_rules(&lab.host), before, "line {line}");
    }
}

/// Which lines a record of two may lose.
const LOST_LINES: [&[(usize, &str)]; 3] = [&[(0, "")], &[(1, "10.88.0.2 ")], &[(1, "10.88.0.2 "), (0, "")]];

#[test]
fn the_own_add_takes_away_what_only_the_file_knows_as_the_record_has_lost_a_line() {
    let (lab, _server) = dropping_lab();
    let mut tenant = Tenant::new(&lab, 2, json!({}));
    let (stays, there) = (Tenant::new(&lab, 3, json!({})), neighbour(&lab, json!({"ingressPolicy": "same-bridge"})));
    for lost in LOST_LINES {
        tenant.config["ingressPolicy"] = "same-bridge".into();
        tenant.config["prevResult"]["ips"][0]["address"] = "10.88.0.2/24".into();
        tenant.add(&lab);
        for (line, text) in lost {
            delete_record_line(&lab, *line, text);
        }
        stays.add(&lab);
        there.add(&lab);
        is_cut_off(&stays.container.netns, &there.at(80));
        tenant.config["ingressPolicy"] = "open".into();
        tenant.config["prevResult"]["ips"][0]["address"] = "10.88.0.77/24".into();
        tenant.add(&lab);
        tenant.check(&lab);
        let rules = lab.host.run("nft list ruleset");
        assert!(!rules.contains("10.88.0.2 ") && !rules.contains("same-bridge-cni0"), "{lost:?}: {rules}");
        reaches(&stays.container.netns, &there.at(80), "neighbour");
        tenant.del(&lab);
        assert!(!lab.host.run("nft list ruleset").contains("container-2"), "{lost:?}");
        stays.del(&lab);
        there.del(&lab);
        assert_eq!(lab.host.run("ls /run/cni/firewall"), "", "{lost:?}");
    }
}

#[test]
fn an_elder_owner_whose_record_has_lost_a_line_gets_its_address_back() {
    let (lab, _server) = dropping_lab();
    let tenant = Tenant::new(&lab, 2, json!({}));
    let [(elder, elders), (younger, youngers)] = &claimants(&tenant)[..2] else { panic!("there are three") };
    let mut gc = json!({"cniVersion": VERSION, "name": "other", "type": "firewall"});
    gc["cni.dev/valid-attachments"] = json!([]);
    for lost in LOST_LINES {
        for by_gc in [false, true] {
            call(&lab.host, Verb::Add, elder, elders).succeeds();
            for (line, text) in lost {
                delete_record_line(&lab, *line, text);
            }
            call(&lab.host, Verb::Add, younger, youngers).succeeds();
            if by_gc {
                call(&lab.host, Verb::Gc, &gc, &Target::new("", "", "")).succeeds();
            } else {
                call(&lab.host, Verb::Del, younger, youngers).succeeds();
            }
            reaches(&tenant.container.netns, &client(80), "client");
            call(&lab.host, Verb::Add, elder, elders).succeeds();
            call(&lab.host, Verb::Check, elder, elders).succeeds();
            call(&lab.host, Verb::Del, elder, elders).succeeds();
            is_cut_off(&tenant.container.netns, &client(80));
        }
    }
}

/// What is in the kernel goes, and goes over, whatever stands in the place of the files.
#[test]
fn an_elder_owner_gets_its_address_back_where_the_directory_can_t_be_opened() {
    let (lab, _server) = dropping_lab();
    let tenant = Tenant::new(&lab, 2, json!({}));
    let [(elder, elders), (younger, youngers)] = &claimants(&tenant)[..2] else { panic!("there are three") };
    call(&lab.host, Verb::Add, elder, elders).succeeds();
    call(&lab.host, Verb::Add, younger, youngers).succeeds();
    lab.host.pipe("sh", "mv /run/cni /run/before; touch /run/cni").unwrap();
    call(&lab.host, Verb::Del, younger, youngers).fails_with(106);
    let listed = lab.host.run("nft list table inet cni_chain_firewall");
    assert!(!listed.contains("other/second") && listed.contains("net/first"), "{listed}");
    reaches(&tenant.container.netns, &client(80), "client");
    lab.host.pipe("sh", "rm /run/cni; mv /run/before /run/cni").unwrap();
    call(&lab.host, Verb::Check, elder, elders).succeeds();
    call(&lab.host, Verb::Del, younger, youngers).succeeds();
    call(&lab.host, Verb::Del, elder, elders).succeeds();
    is_cut_off(&tenant.container.netns, &client(80));
}

/// What an elder owner's record no longer says only its file does: nothing is taken before that can be read.
#[test]
fn an_elder_owner_whose_record_has_lost_a_line_keeps_its_address_where_the_directory_can_t_be_opened() {
    let (lab, _server) = dropping_lab();
    let tenant = Tenant::new(&lab, 2, json!({}));
    let [(elder, elders), (younger, youngers)] = &claimants(&tenant)[..2] else { panic!("there are three") };
    let elsewhere = |config: &Value| {
        let mut config = config.clone();
        config["prevResult"]["ips"][0]["address"] = "10.88.0.77/16".into();
        config
    };
    let lost = [(0, ""), (1, "10.88.0.2 ")];
    for ((line, text), goes) in lost.into_iter().flat_map(|line| [(line, false), (line, true)]) {
        call(&lab.host, Verb::Add, elder, elders).succeeds();
        delete_record_line(&lab, line, text);
        call(&lab.host, Verb::Add, younger, youngers).succeeds();
        let before = lab.host.run("nft list table inet cni_chain_firewall");
        lab.host.pipe("sh", "mv /run/cni /run/before; touch /run/cni").unwrap();
        let (verb, config) = if goes { (Verb::Del, younger.clone()) } else { (Verb::Add, elsewhere(younger)) };
        call(&lab.host, verb, &config, youngers).fails_with(106);
        assert_eq!(lab.host.run("nft list table inet cni_chain_firewall"), before);
        reaches(&tenant.container.netns, &client(80), "client");
        lab.host.pipe("sh", "rm /run/cni; mv /run/before /run/cni").unwrap();
        call(&lab.host, verb, &config, youngers).succeeds();
        reaches(&tenant.container.netns, &client(80), "client");
        call(&lab.host, Verb::Add, elder, elders).succeeds();
        call(&lab.host, Verb::Check, elder, elders).succeeds();
        call(&lab.host, Verb::Del, younger, youngers).succeeds();
        call(&lab.host, Verb::Del, elder, elders).succeeds();
    }
    is_cut_off(&tenant.container.netns, &client(80));
}

/// DEL of the first, held where its record has gone and its file hasn't, and of the second meanwhile.
fn delete_at_once(lab: &Lab, [first, second]: [&(Value, Target); 2]) {
    let strace = ["strace", "-o", "/dev/null", "-e", "trace=unlinkat", "-e", "inject=unlinkat:delay_enter=1500000"];
    let label = format!("{}/{}/eth0", first.0["name"].as_str().unwrap(), first.1.container);
    std::thread::scope(|scope| {
        let held = scope.spawn(|| {
            let (config, target) = first;
            Plugin::ours("firewall").call_under(&strace, &lab.host, Verb::Del, config, target).succeeds();
        });
        let records = || lab.host.run("nft list map inet cni_chain_firewall records");
        lab.host.wait_until("its record has gone", || !records().contains(&label));
        assert!(lab.host.run("ls /run/cni/firewall").lines().count() >= 2, "the file of the first has gone, too");
        call(&lab.host, Verb::Del, &second.0, &second.1).succeeds();
        held.join().unwrap();
    });
}

#[test]
fn of_two_who_go_at_once_none_leaves_an_address_to_the_other() {
    let (lab, _server) = dropping_lab();
    let tenant = Tenant::new(&lab, 2, json!({}));
    let all = claimants(&tenant);
    let [elder, younger, youngest] = &all[..] else { panic!("there are three") };
    let add = |(config, target): &(Value, Target)| drop(call(&lab.host, Verb::Add, config, target).succeeds());
    [elder, younger, youngest].into_iter().for_each(add);
    delete_at_once(&lab, [younger, youngest]);
    call(&lab.host, Verb::Check, &elder.0, &elder.1).succeeds();
    call(&lab.host, Verb::Del, &younger.0, &younger.1).succeeds();
    reaches(&tenant.container.netns, &client(80), "client");
    for order in [[elder, younger], [younger, elder]] {
        [elder, younger].into_iter().for_each(add);
        delete_at_once(&lab, order);
        assert!(!lab.host.run("nft list table inet cni_chain_firewall").contains("10.88.0.2"));
        is_cut_off(&tenant.container.netns, &client(80));
    }
}

#[test]
fn of_two_who_go_at_once_none_leaves_a_policy_to_the_other() {
    let lab = Lab::new();
    let tenants = [2, 3].map(|n| Tenant::new(&lab, n, json!({"ingressPolicy": "same-bridge"})));
    tenants.iter().for_each(|tenant| tenant.add(&lab));
    let [first, second] = tenants.each_ref().map(|tenant| (tenant.config.clone(), tenant.container.target()));
    delete_at_once(&lab, [&first, &second]);
    let listed = || lab.host.run("nft list table inet cni_chain_firewall");
    assert!(!listed().contains("cni0"), "{}", listed());
    // Somebody's own rule keeps the chain, but nobody in it.
    tenants.iter().for_each(|tenant| tenant.add(&lab));
    lab.host.run("nft add chain inet cni_chain_firewall mine");
    lab.host.run("nft add rule inet cni_chain_firewall mine jump same-bridge-cni0");
    delete_at_once(&lab, [&first, &second]);
    assert!(!listed().contains("\"cni0\""), "{}", listed());
}

/// What an attachment's own record no longer says only its file does.
#[test]
fn who_goes_takes_nothing_before_the_file_can_be_read_that_says_what_is_its_own() {
    let (lab, _server) = dropping_lab();
    let tenant = Tenant::new(&lab, 2, json!({}));
    let [(elder, elders), (younger, youngers)] = &claimants(&tenant)[..2] else { panic!("there are three") };
    let mut gc = json!({"cniVersion": VERSION, "name": "other", "type": "firewall"});
    gc["cni.dev/valid-attachments"] = json!([]);
    let (hide, show) = ("mv /run/cni /run/before; touch /run/cni", "rm /run/cni; mv /run/before /run/cni");
    // Standard input and output, the socket and the directory leave no room for the file.
    let obstacles: [(&str, &[&str], &str); 2] = [(hide, &["env"], show), ("", &["prlimit", "--nofile=5"], "")];
    let lost: [&[(usize, &str)]; 2] = [&[(1, "shared")], &[(1, "shared"), (0, "other/second")]];
    let cases = obstacles.into_iter().flat_map(|obstacle| lost.map(|lost| (obstacle, lost)));
    for ((hide, wrapper, show), lost, by_gc) in
        cases.flat_map(|(obstacle, lost)| [(obstacle, lost, false), (obstacle, lost, true)])
    {
        call(&lab.host, Verb::Add, elder, elders).succeeds();
        call(&lab.host, Verb::Add, younger, youngers).succeeds();
        lost.iter().for_each(|(line, text)| delete_record_line(&lab, *line, text));
        let look = "nft list table inet cni_chain_firewall; find /run/cni /run/before -type f 2>/dev/null | sort";
        let state = || lab.host.pipe("sh", look).unwrap();
        lab.host.pipe("sh", hide).unwrap();
        let before = state();
        let nobody = Target::new("", "", "");
        let (verb, config, target) = if by_gc { (Verb::Gc, &gc, &nobody) } else { (Verb::Del, younger, youngers) };
        Plugin::ours("firewall").call_under(wrapper, &lab.host, verb, config, target).fails_with(106);
        assert_eq!(state(), before, "{wrapper:?}");
        lab.host.pipe("sh", show).unwrap();
        call(&lab.host, verb, config, target).succeeds();
        call(&lab.host, Verb::Check, elder, elders).succeeds();
        reaches(&tenant.container.netns, &client(80), "client");
        call(&lab.host, Verb::Del, elder, elders).succeeds();
    }
}

#[test]
fn a_policy_stays_for_whom_the_record_has_lost_the_line_that_says_so() {
    let lab = Lab::new();
    let keys = json!({"ingressPolicy": "same-bridge"});
    let (goes, stays) = (Tenant::new(&lab, 2, keys.clone()), Tenant::new(&lab, 3, keys.clone()));
    let there = neighbour(&lab, keys);
    for verb in [Verb::Del, Verb::Add] {
        for tenant in [&goes, &stays, &there] {
            tenant.add(&lab);
        }
        delete_record_line(&lab, 0, "container-3");
        let mut config = goes.config.clone();
        config["ingressPolicy"] = "open".into();
        call(&lab.host, verb, &config, &goes.container.target()).succeeds();
        is_cut_off(&stays.container.netns, &there.at(80));
        stays.add(&lab);
        stays.check(&lab);
        for tenant in [&goes, &stays, &there] {
            tenant.del(&lab);
        }
        assert!(!lab.host.run("nft list ruleset").contains("same-bridge-"));
    }
}

#[test]
fn the_last_to_need_a_policy_opens_no_file_of_other_networks() {
    let lab = Lab::new();
    let goes = Tenant::new(&lab, 2, json!({"ingressPolicy": "same-bridge"}));
    for n in 1..=3 {
        let prev = json!({"cniVersion": VERSION, "ips": [{"address": format!("10.90.0.{n}/24")}]});
        let name = format!("other-{n}");
        let config = json!({"cniVersion": VERSION, "name": name, "type": "firewall", "prevResult": prev});
        let target = Target { container: name, ..goes.container.target() };
        call(&lab.host, Verb::Add, &config, &target).succeeds();
    }
    let listed = lab.host.run("ls /run/cni/firewall");
    let others: Vec<&str> = listed.split_whitespace().collect();
    assert_eq!(others.len(), 3);
    // One that can't be read isn't even warned of.
    lab.host.write(&format!("/run/cni/firewall/{}", others[0]), "{");
    for verb in [Verb::Del, Verb::Add] {
        goes.add(&lab);
        let trace = tempfile::NamedTempFile::new().unwrap();
        let strace = ["strace", "-f", "-qq", "-e", "trace=openat", "-o", trace.path().to_str().unwrap()];
        let mut config = goes.config.clone();
        config["ingressPolicy"] = "open".into();
        let target = goes.container.target();
        let outcome = Plugin::ours("firewall").call_under(&strace, &lab.host, verb, &config, &target);
        outcome.succeeds();
        assert!(!lab.host.run("nft list ruleset").contains("same-bridge-"));
        let calls = std::fs::read_to_string(trace.path()).unwrap();
        assert!(calls.contains("/run/cni/firewall"), "{calls}");
        let opened: Vec<&str> = calls.lines().filter(|call| others.iter().any(|name| call.contains(name))).collect();
        assert!(opened.is_empty(), "{verb:?}: {opened:#?}");
        assert!(!others.iter().any(|name| outcome.stderr.contains(name)), "{}", outcome.stderr);
    }
    goes.del(&lab);
}

#[test]
fn a_lost_record_of_others_is_no_reason_to_open_their_bridge() {
    for network in ["net", "other"] {
        a_lost_record_opens_no_bridge_of(network);
    }
}

/// The record of an attachment of this network is lost with that of another which goes.
fn a_lost_record_opens_no_bridge_of(network: &str) {
    let lab = Lab::new();
    let keys = json!({"ingressPolicy": "same-bridge"});
    let (goes, mut stays) = (Tenant::new(&lab, 2, keys.clone()), Tenant::new(&lab, 3, keys.clone()));
    stays.config["name"] = network.into();
    let there = neighbour(&lab, keys);
    for tenant in [&goes, &stays, &there] {
        tenant.add(&lab);
    }
    is_cut_off(&stays.container.netns, &there.at(80));
    lab.host.run("nft flush map inet cni_chain_firewall records");
    goes.del(&lab);
    let mut gc = json!({"cniVersion": VERSION, "name": "elsewhere", "type": "firewall"});
    gc["cni.dev/valid-attachments"] = json!([]);
    call(&lab.host, Verb::Gc, &gc, &Target::new("", "", "")).succeeds();
    is_cut_off(&stays.container.netns, &there.at(80));
    stays.add(&lab);
    stays.check(&lab);
    stays.del(&lab);
    there.add(&lab);
    there.del(&lab);
    assert!(!lab.host.run("nft list ruleset").contains("same-bridge-"));
}

#[test]
fn gc_removes_the_dead_and_leaves_the_living_and_other_networks() {
    let (lab, _server) = dropping_lab();
    let (living, dead) = (Tenant::new(&lab, 2, json!({})), Tenant::new(&lab, 3, json!({})));
    let mut foreign = Tenant::new(&lab, 4, json!({}));
    foreign.config["name"] = "other".into();
    living.add(&lab);
    foreign.add(&lab);
    let before = lab.host.snapshot();
    dead.add(&lab);
    let mut gc = json!({"cniVersion": VERSION, "name": "net", "type": "firewall"});
    gc["cni.dev/valid-attachments"] = json!([{"containerID": living.container.id, "ifname": "eth0"}]);
    for _ in 0..2 {
        call(&lab.host, Verb::Gc, &gc, &Target::new("", "", "")).succeeds();
        lab.host.assert_same_as(&before);
    }
    living.check(&lab);
    foreign.check(&lab);
}

#[test]
fn gc_forgets_the_dead_of_whom_only_a_file_is_left() {
    let (lab, _server) = dropping_lab();
    let (dead, next) = (Tenant::new(&lab, 2, json!({})), Tenant::new(&lab, 3, json!({})));
    dead.add(&lab);
    lab.host.run("nft flush ruleset");
    lab.host.drop_forwarded();
    let mut gc = json!({"cniVersion": VERSION, "name": "net", "type": "firewall"});
    gc["cni.dev/valid-attachments"] = json!([]);
    call(&lab.host, Verb::Gc, &gc, &Target::new("", "", "")).succeeds();
    assert_eq!(lab.host.run("ls /run/cni/firewall"), "");
    next.add(&lab);
    is_cut_off(&dead.container.netns, &client(80));
    assert!(!lab.host.run("nft list ruleset").contains("container-2"));
}

#[test]
fn twenty_at_once_leave_nothing_doubled_and_nothing_behind() {
    let (lab, _server) = dropping_lab();
    let prev = |n: u32| {
        json!({"cniVersion": VERSION, "interfaces": [{"name": "cni0"}], "ips": [
            {"address": format!("10.88.7.{n}/16")}, {"address": format!("fd00:88::7:{n:x}/64")},
        ]})
    };
    let config = |n: u32| {
        json!({"cniVersion": VERSION, "name": "net", "type": "firewall", "ingressPolicy": "same-bridge",
                                 "prevResult": prev(n)})
    };
    let netns = Netns::new("container");
    let all = |verb: Verb| {
        std::thread::scope(|scope| {
            let calls: Vec<_> = (1..=20)
                .map(|n| {
                    let target = Target::new(&format!("c{n}"), &netns.path(), "eth0");
                    let (lab, config) = (&lab, config(n));
                    scope.spawn(move || call(&lab.host, verb, &config, &target).succeeds())
                })
                .collect();
            calls.into_iter().for_each(|call| drop(call.join().unwrap()));
        });
    };
    all(Verb::Add);
    all(Verb::Check);
    let saved = lab.host.run("iptables -w -S");
    assert_eq!(saved.matches("-j CNI-FORWARD").count(), 1, "{saved}");
    assert_eq!(saved.matches("--mark").count(), 1, "{saved}");
    all(Verb::Del);
    let ruleset = lab.host.run("nft list ruleset");
    for left in ["\"net/", "same-bridge-", "10.88.7", "\"cni0\""] {
        assert!(!ruleset.contains(left), "{left} is left:\n{ruleset}");
    }
}

#[test]
fn what_can_not_be_meant_changes_nothing() {
    let (lab, _server) = dropping_lab();
    let bad =
        [json!({"backend": "ipfw"}), json!({"ingressPolicy": "closed"}), json!({"hostChains": ["inet no chain"]})];
    let tenant = Tenant::new(&lab, 2, json!({}));
    let before = lab.host.snapshot();
    for keys in bad {
        let mut config = tenant.config.clone();
        config.as_object_mut().unwrap().extend(keys.as_object().cloned().unwrap());
        let outcome = call(&lab.host, Verb::Add, &config, &tenant.container.target());
        assert!([2, 7].contains(&outcome.fails().code), "{keys}");
        lab.host.assert_same_as(&before);
    }
}

/// A second bridge `cni1` with its first container, 10.89.0.2 and fd00:89::2.
fn neighbour(lab: &Lab, keys: Value) -> Tenant {
    lab.host.run("ip link add cni1 type bridge");
    lab.host.run("ip link set cni1 up");
    lab.host.address("cni1", "10.89.0.1/24");
    lab.host.address("cni1", "fd00:89::1/64");
    let container = Container {
        netns: Netns::new("neighbour"),
        id: "neighbour".into(),
        ifname: "eth0".into(),
        host_ifname: "vethn".into(),
        addresses: ["10.89.0.2".into(), "fd00:89::2".into()],
    };
    let addresses = ["10.89.0.2/24", "fd00:89::2/64"];
    connect(End::new(&lab.host, "vethn", &[]), End::new(&container.netns, "eth0", &addresses));
    lab.host.run("ip link set vethn master cni1");
    container.netns.route("default", "10.89.0.1");
    container.netns.route("default", "fd00:89::1");
    let mut prev = container.prev_result(VERSION);
    prev["interfaces"][0]["name"] = "cni1".into();
    let mut tenant = Tenant::of(container, "neighbour", keys);
    tenant.config["prevResult"] = prev;
    tenant
}

#[test]
fn bridges_with_a_policy_do_not_talk_to_each_other() {
    for policy in ["same-bridge", "isolated"] {
        // The host forwards everything: what is dropped is dropped by the policy.
        let lab = Lab::new();
        let _server = serve(&lab.client, 80, "client");
        let here = Tenant::new(&lab, 2, json!({"ingressPolicy": policy}));
        let there = neighbour(&lab, json!({"ingressPolicy": "same-bridge"}));
        reaches(&here.container.netns, &there.at(80), "neighbour");
        here.add(&lab);
        reaches(&here.container.netns, &there.at(80), "neighbour");
        there.add(&lab);
        here.check(&lab);
        there.check(&lab);
        is_cut_off(&here.container.netns, &there.at(80));
        is_cut_off(&there.container.netns, &here.at(80));
        reaches(&here.container.netns, &client(80), "client");
        reaches(&lab.client, &here.at(80), "container 2");
        there.del(&lab);
        reaches(&there.container.netns, &here.at(80), "container 2");
        here.del(&lab);
        assert!(!lab.host.run("nft list ruleset").contains("cni0"), "the policy goes with the last attachment");
    }
}

/// What the kernel counts of a policy's chain is not only who needs the policy.
#[test]
fn a_policy_goes_with_the_last_that_needs_it_whatever_others_have_done_to_its_chain() {
    let lab = Lab::new();
    let keys = json!({"ingressPolicy": "same-bridge"});
    let (here, too) = (Tenant::new(&lab, 2, keys.clone()), Tenant::new(&lab, 3, keys.clone()));
    let there = neighbour(&lab, keys);
    there.add(&lab);
    let mut open = here.config.clone();
    open.as_object_mut().unwrap().remove("ingressPolicy");
    let mut gc = json!({"cniVersion": VERSION, "name": "net", "type": "firewall"});
    gc["cni.dev/valid-attachments"] = json!([{"containerID": there.container.id, "ifname": "eth0"}]);
    let collect = || drop(call(&lab.host, Verb::Gc, &gc, &Target::new("", "", "")).succeeds());
    let restricts = || lab.host.run("nft list ruleset").contains("\"cni0\"");
    let chain = "inet cni_chain_firewall same-bridge-cni0";
    let inside = format!("insert rule {chain} counter");
    let leading =
        "add chain inet cni_chain_firewall other\nadd rule inet cni_chain_firewall other jump same-bridge-cni0";
    for strange in [inside.clone(), leading.to_owned(), format!("{inside}\n{leading}")] {
        for last in ["DEL", "GC", "ADD"] {
            here.add(&lab);
            too.add(&lab);
            lab.host.nft(&strange);
            too.del(&lab);
            is_cut_off(&here.container.netns, &there.at(80));
            match last {
                "DEL" => here.del(&lab),
                "GC" => collect(),
                _ => {}
            }
            call(&lab.host, Verb::Add, &open, &here.container.target()).succeeds();
            call(&lab.host, Verb::Check, &open, &here.container.target()).succeeds();
            assert!(!restricts(), "{last} after {strange}");
            reaches(&here.container.netns, &there.at(80), "neighbour");
            here.del(&lab);
            let left = lab.host.run("nft list ruleset");
            if left.contains("chain other") {
                lab.host.nft("flush chain inet cni_chain_firewall other\ndelete chain inet cni_chain_firewall other");
            }
            collect();
            assert!(!lab.host.run("nft list ruleset").contains("same-bridge-cni0"), "{last} after {strange}");
        }
    }
    here.add(&lab);
    lab.host.nft(&inside);
    let error = here.call(&lab, Verb::Check).fails_with(101);
    assert!(error.details.contains("same-bridge-cni0") || error.msg.contains("same-bridge-cni0"), "{error:?}");
    here.add(&lab);
    here.check(&lab);
    lab.host.nft(&inside);
    let mut alive = gc.clone();
    let own = json!({"containerID": here.container.id, "ifname": "eth0"});
    alive["cni.dev/valid-attachments"].as_array_mut().unwrap().push(own);
    call(&lab.host, Verb::Gc, &alive, &Target::new("", "", "")).succeeds();
    here.check(&lab);
    is_cut_off(&here.container.netns, &there.at(80));
}

/// The first ADD of a container, which has nothing of its own to compare with, says yes only if it is separated.
#[test]
fn a_container_is_separated_by_its_first_add_whoever_has_emptied_a_chain_before() {
    let lab = Lab::new();
    // Same-bridge needs the one chain by the other.
    let here = Tenant::new(&lab, 2, json!({"ingressPolicy": "same-bridge"}));
    let there = neighbour(&lab, json!({"ingressPolicy": "isolated"}));
    here.add(&lab);
    for chain in ["between_bridges", "from_same_bridge"] {
        there.add(&lab);
        is_cut_off(&here.container.netns, &there.at(80));
        there.del(&lab);
        lab.host.nft(&format!("flush chain inet cni_chain_firewall {chain}"));
        there.add(&lab);
        is_cut_off(&here.container.netns, &there.at(80));
        is_cut_off(&there.container.netns, &here.at(80));
        there.check(&lab);
        there.del(&lab);
    }
}

/// The handles of all rules, each with its table and chain, in the tables that a container with these keys needs.
fn own_rules(host: &Host) -> Vec<(String, String)> {
    let mut rules = Vec::new();
    let (mut table, mut chain) = (String::new(), String::new());
    for line in host.run("nft -a list ruleset").lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["table", family, name, ..] => table = format!("{family} {name}"),
            ["chain", name, ..] => chain = format!("{table} {name}"),
            [.., "#", "handle", handle] if line.starts_with("\t\t") && table.contains("cni_chain") => {
                rules.push((chain.clone(), handle.to_owned()));
            }
            _ => {}
        }
    }
    rules
}

/// Each rule that is static is counted, whichever chain it is in.
#[test]
fn a_static_rule_that_somebody_has_deleted_comes_back_with_the_next_add() {
    let lab = Lab::new();
    let keys = json!({"ingressPolicy": "isolated", "antiSpoof": true});
    let (stays, next) = (Tenant::new(&lab, 2, keys.clone()), Tenant::new(&lab, 3, keys));
    stays.add(&lab);
    let before = sorted_rules(&lab.host);
    let count = own_rules(&lab.host).len();
    assert!(count > 30, "{:?}", own_rules(&lab.host));
    for n in 0..count {
        let (chain, handle) = own_rules(&lab.host)[n].clone();
        lab.host.nft(&format!("delete rule {chain} handle {handle}"));
        let damaged = sorted_rules(&lab.host);
        next.add(&lab);
        assert_eq!(next.call(&lab, Verb::Check).succeeds(), Value::Null, "{chain}: {damaged:?}");
        next.del(&lab);
        assert_eq!(sorted_rules(&lab.host), before, "{chain}");
    }
}

#[test]
fn a_map_of_ours_that_somebody_has_deleted_comes_back_with_the_next_add() {
    let (lab, _server) = dropping_lab();
    let (stays, next) = (Tenant::new(&lab, 2, json!({})), Tenant::new(&lab, 3, json!({})));
    stays.add(&lab);
    let before = sorted_rules(&lab.host);
    lab.host.nft("delete map inet cni_chain_firewall records");
    next.add(&lab);
    next.check(&lab);
    stays.check(&lab);
    reaches(&next.container.netns, &client(80), "client");
    next.del(&lab);
    assert_eq!(sorted_rules(&lab.host), before, "the other's record is back, too");
    lab.host.nft("delete map inet cni_chain_firewall records");
    stays.del(&lab);
    assert!(!lab.host.run("nft list ruleset").contains("container-2"));
}

/// An ADD counts rules and doesn't read them; STATUS reads. What any ADD mends it must not refuse, or no ADD would come.
#[test]
fn status_names_a_static_rule_that_no_first_add_would_mend() {
    let (lab, _server) = dropping_lab();
    let tenant = Tenant::new(&lab, 2, json!({"ingressPolicy": "isolated"}));
    tenant.add(&lab);
    let before = sorted_rules(&lab.host);
    status(&lab, json!({})).succeeds();
    for flush in ["flush chain inet cni_chain_firewall admitted", "delete map inet cni_chain_firewall records"] {
        lab.host.nft(flush);
        let outcome = status(&lab, json!({}));
        outcome.succeeds();
        assert!(outcome.stderr.contains("the next ADD that needs table inet cni_chain_firewall"), "{}", outcome.stderr);
        tenant.add(&lab);
        assert_eq!(status(&lab, json!({})).stderr, "");
    }
    let (chain, handle) = own_rules(&lab.host).into_iter().find(|(chain, _)| chain.ends_with("admitted")).unwrap();
    for damage in [
        format!("replace rule {chain} handle {handle} drop"),
        "add chain inet cni_chain_firewall more { type filter hook forward priority 7; policy drop; }".to_owned(),
    ] {
        lab.host.nft(&damage);
        let error = status(&lab, json!({})).fails_with(51);
        assert!(error.msg.contains("table inet cni_chain_firewall"), "after {damage}: {error:?}");
        assert!(error.details.contains("repeat the ADD"), "{error:?}");
        tenant.add(&lab);
        status(&lab, json!({})).succeeds();
        assert_eq!(sorted_rules(&lab.host), before, "after {damage}");
    }
}

#[test]
fn an_isolated_container_can_not_talk_to_its_neighbours_on_the_bridge() {
    let lab = Lab::new();
    // Frames between the ports of a bridge don't pass the IP hooks then.
    for which in ["iptables", "ip6tables"] {
        lab.host.set_sysctl(&format!("net/bridge/bridge-nf-call-{which}"), "0");
    }
    let _server = serve(&lab.client, 80, "client");
    let isolated = Tenant::new(&lab, 2, json!({"ingressPolicy": "isolated"}));
    let open = Tenant::new(&lab, 3, json!({}));
    open.add(&lab);
    reaches(&open.container.netns, &isolated.at(80), "container 2");
    isolated.add(&lab);
    isolated.check(&lab);
    is_cut_off(&open.container.netns, &isolated.at(80));
    is_cut_off(&isolated.container.netns, &open.at(80));
    reaches(&isolated.container.netns, &client(80), "client");
    reaches(&lab.client, &isolated.at(80), "container 2");
    isolated.del(&lab);
    reaches(&open.container.netns, &isolated.at(80), "container 2");
}

/// Whether what `from` sends to `to` arrives, and in turn by v4 and v6; nothing is needed back, not even to resolve the
/// neighbour. With TCP, a way that is closed in one direction looks as if it were closed in both.
fn arrives(lab: &Lab, from: &Tenant, to: &Tenant) -> Vec<bool> {
    let shown = to.container.netns.run("ip -o link show dev eth0");
    let mac = shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap();
    let arrived = |address: &String| {
        let neighbour = format!("ip neigh replace {address} lladdr {mac} dev eth0 nud permanent");
        from.container.netns.run(&neighbour);
        let at: std::net::SocketAddr = (address.parse::<std::net::IpAddr>().unwrap(), 5000).into();
        let any = if at.is_ipv4() { "0.0.0.0" } else { "::" };
        let socket = |port: u16| std::net::UdpSocket::bind((any, port)).unwrap();
        let receiver = to.container.netns.inside(|| socket(5000));
        let (sender, host) = (from.container.netns.inside(|| socket(0)), lab.host.inside(|| socket(0)));
        (0..3).for_each(|_| assert_eq!(sender.send_to(b"neighbour", at).unwrap(), 9));
        // What comes later has come: so the first would have.
        host.send_to(b"host", at).unwrap();
        let mut buffer = [0; 16];
        let mut next = || receiver.recv(&mut buffer).map(|n| buffer[..n].to_vec()).unwrap();
        let first = next();
        let mut last = first.clone();
        while last != b"host" {
            last = next();
        }
        first == b"neighbour"
    };
    to.container.addresses.iter().map(arrived).collect()
}

#[test]
fn nothing_goes_from_an_isolated_container_to_a_neighbour_or_from_a_neighbour_to_it() {
    let lab = Lab::new();
    for which in ["iptables", "ip6tables"] {
        lab.host.set_sysctl(&format!("net/bridge/bridge-nf-call-{which}"), "0");
    }
    let isolated = Tenant::new(&lab, 2, json!({"ingressPolicy": "isolated"}));
    let open = Tenant::new(&lab, 3, json!({}));
    open.add(&lab);
    let ways = || [arrives(&lab, &isolated, &open), arrives(&lab, &open, &isolated)].concat();
    assert_eq!(ways(), [true; 4]);
    isolated.add(&lab);
    assert_eq!(ways(), [false; 4], "out of it by v4, v6, into it by v4, v6");
    isolated.del(&lab);
    assert_eq!(ways(), [true; 4]);
}

#[test]
fn containers_with_the_same_bridge_policy_talk_to_each_other_on_one_bridge() {
    let lab = Lab::new();
    let keys = json!({"ingressPolicy": "same-bridge"});
    let (a, b) = (Tenant::new(&lab, 2, keys.clone()), Tenant::new(&lab, 3, keys));
    a.add(&lab);
    b.add(&lab);
    reaches(&a.container.netns, &b.at(80), "container 3");
    reaches(&b.container.netns, &a.at(80), "container 2");
    // The policy stays as long as one needs it.
    a.del(&lab);
    b.check(&lab);
    assert!(lab.host.run("nft list ruleset").contains("jump same-bridge-cni0"));
}

#[test]
fn beside_an_isolated_container_those_with_same_bridge_talk_as_far_as_bridge_nf_lets_them() {
    let lab = Lab::new();
    let keys = |policy: &str| json!({"ingressPolicy": policy});
    let isolated = Tenant::new(&lab, 2, keys("isolated"));
    let (a, b) = (Tenant::new(&lab, 3, keys("same-bridge")), Tenant::new(&lab, 4, keys("same-bridge")));
    let open = Tenant::new(&lab, 5, json!({}));
    for tenant in [&isolated, &a, &b, &open] {
        tenant.add(&lab);
    }
    for on in [false, true] {
        for which in ["iptables", "ip6tables"] {
            lab.host.set_sysctl(&format!("net/bridge/bridge-nf-call-{which}"), if on { "1" } else { "0" });
        }
        assert_eq!(arrives(&lab, &a, &b), [!on; 2], "same-bridge, bridge-nf {on}");
        assert_eq!(arrives(&lab, &open, &a), [!on; 2], "open, bridge-nf {on}");
        assert_eq!([arrives(&lab, &isolated, &a), arrives(&lab, &a, &isolated)].concat(), [false; 4]);
    }
    isolated.del(&lab);
    assert_eq!(arrives(&lab, &a, &b), [true; 2]);
}

#[test]
fn another_source_address_is_no_way_out_of_an_isolated_bridge() {
    let lab = Lab::new();
    let here = Tenant::new(&lab, 2, json!({"ingressPolicy": "isolated"}));
    let there = neighbour(&lab, json!({"ingressPolicy": "isolated"}));
    here.add(&lab);
    there.add(&lab);
    here.container.netns.address("eth0", "10.88.0.99/24");
    let spoofed = Fetch::new(Proto::Tcp, &there.at(80)[0]).source("10.88.0.99:0");
    spoofed.expect_nothing(&here.container.netns);
}

#[test]
fn the_policys_bridge_is_found_wherever_it_stands_in_prev_result() {
    let lab = Lab::new();
    let mut tenant = Tenant::new(&lab, 2, json!({"ingressPolicy": "same-bridge"}));
    tenant.config["prevResult"]["interfaces"].as_array_mut().unwrap().swap(0, 1);
    tenant.add(&lab);
    assert!(lab.host.run("nft list set inet cni_chain_firewall same_bridge").contains("\"cni0\""));
}

#[test]
fn a_port_that_prev_result_does_not_name_is_found_from_the_containers_end() {
    let lab = Lab::new();
    let mut tenant = Tenant::new(&lab, 2, json!({"ingressPolicy": "isolated"}));
    tenant.config["prevResult"]["interfaces"].as_array_mut().unwrap().remove(1);
    for ip in tenant.config["prevResult"]["ips"].as_array_mut().unwrap() {
        ip["interface"] = 1.into();
    }
    tenant.add(&lab);
    assert!(lab.host.run("nft list set bridge cni_chain_firewall isolated_ports").contains("\"veth2\""));
}

#[test]
fn a_changed_policy_or_address_leaves_nothing_of_the_former_add() {
    let lab = Lab::new();
    let mut tenant = Tenant::new(&lab, 2, json!({}));
    tenant.add(&lab);
    let before = sorted_rules(&lab.host);
    tenant.config["ingressPolicy"] = "isolated".into();
    tenant.config["prevResult"]["ips"][0]["address"] = "10.88.0.77/24".into();
    tenant.add(&lab);
    tenant.check(&lab);
    assert!(!lab.host.run("nft list ruleset").contains("10.88.0.2 "));
    tenant.config["ingressPolicy"] = "open".into();
    tenant.config["prevResult"]["ips"][0]["address"] = "10.88.0.2/24".into();
    tenant.add(&lab);
    tenant.check(&lab);
    let mut after = sorted_rules(&lab.host);
    // The bridge's table stays, empty.
    let bridge_table = lab.host.run("nft --stateless list table bridge cni_chain_firewall");
    assert!(!bridge_table.contains("\"eth0\"") && !bridge_table.contains("veth2"), "{bridge_table}");
    for line in bridge_table.lines() {
        after.remove(after.iter().position(|l| l == line).unwrap());
    }
    assert_eq!(after, before);
}

/// A native nftables host, as Debian's example in /usr/share/doc/nftables/examples/workstation.nft with forwarding.
const NATIVE: &str = "table inet filter { chain forward { type filter hook forward priority filter; policy drop;\n\
    ct state established,related accept\n }\n }";

#[track_caller]
fn status(lab: &Lab, keys: Value) -> Outcome {
    let mut config = json!({"cniVersion": VERSION, "name": "net", "type": "firewall"});
    config.as_object_mut().unwrap().extend(keys.as_object().cloned().unwrap_or_default());
    call(&lab.host, Verb::Status, &config, &Target::new("", "", ""))
}

#[test]
fn status_says_where_shares_can_not_be_kept() {
    let (lab, _server) = dropping_lab();
    for obstacle in ["ln -s /nowhere /run/cni/firewall", "mkdir -m 777 /run/cni/firewall"] {
        for command in ["mkdir -p -m 755 /run/cni", "rm -rf /run/cni/firewall", obstacle] {
            lab.host.run(command);
        }
        let outcome = status(&lab, json!({}));
        outcome.succeeds();
        let said = &outcome.stderr;
        assert!(said.contains("/run/cni/firewall") && said.contains("only with its own ADD"), "{obstacle}: {said}");
    }
    lab.host.run("rm -rf /run/cni/firewall");
    assert_eq!(status(&lab, json!({})).stderr, "");
}

#[test]
fn status_changes_nothing_and_finds_nothing_on_a_host_with_iptables() {
    let (lab, _server) = dropping_lab();
    let before = lab.host.snapshot();
    status(&lab, json!({})).succeeds();
    lab.host.assert_same_as(&before);
}

#[test]
fn a_native_chain_that_drops_is_named_and_accepts_when_it_is_a_host_chain() {
    let lab = Lab::new();
    let _server = serve(&lab.client, 80, "client");
    lab.host.nft(NATIVE);
    let without = Tenant::new(&lab, 2, json!({}));
    let added = without.call(&lab, Verb::Add);
    assert!(added.stderr.contains("inet filter forward"), "ADD names it: {}", added.stderr);
    is_cut_off(&without.container.netns, &client(80));
    let error = status(&lab, json!({})).fails_with(51);
    assert!(error.msg.contains("inet filter forward") && error.details.contains("hostChains"), "{error:?}");

    let keys = json!({"hostChains": ["inet filter forward"]});
    let with = Tenant::new(&lab, 3, keys.clone());
    assert_eq!(with.call(&lab, Verb::Add).stderr, "");
    reaches(&with.container.netns, &client(80), "client");
    reaches(&without.container.netns, &client(80), "client");
    is_cut_off(&lab.client, &with.at(80));
    status(&lab, keys).succeeds();
    with.check(&lab);
    let before = sorted_rules(&lab.host);
    with.add(&lab);
    assert_eq!(sorted_rules(&lab.host), before, "once, not once an ADD");
    lab.host.run("nft insert rule inet filter forward counter drop");
    let error = with.call(&lab, Verb::Check).fails_with(101);
    assert!(error.details.contains("chain inet filter forward") && error.details.contains("rule 1"), "{error:?}");
    let added = with.call(&lab, Verb::Add);
    assert!(added.stderr.contains("chain inet filter forward") && added.stderr.contains("rule 1"), "{}", added.stderr);

    lab.host.run("nft flush chain inet filter forward");
    let error = with.call(&lab, Verb::Check).fails_with(101);
    assert!(error.details.contains("chain inet filter forward"), "{error:?}");
    with.add(&lab);
    with.check(&lab);
}

#[test]
fn a_native_chain_that_rejects_at_its_end_is_named_too() {
    let lab = Lab::new();
    lab.host.nft(
        "table inet mine { chain passing { type filter hook forward priority filter;\n\
         ct state vmap { established : accept, related : accept, invalid : drop }\n reject\n }\n }",
    );
    let error = status(&lab, json!({})).fails_with(51);
    assert!(error.msg.contains("inet mine passing"), "{error:?}");
    // One that accepts something is the administrator's business.
    lab.host.run("nft insert rule inet mine passing iifname cni0 accept");
    status(&lab, json!({})).succeeds();
}

#[test]
fn the_nftables_backend_makes_no_table_of_iptables_but_uses_one_that_is_there() {
    let lab = Lab::new();
    let _server = serve(&lab.client, 80, "client");
    let tenant = Tenant::new(&lab, 2, json!({"backend": "nftables"}));
    tenant.add(&lab);
    tenant.check(&lab);
    assert!(!lab.host.run("nft list tables").contains(" filter"));
    lab.host.drop_forwarded();
    tenant.call(&lab, Verb::Check).fails_with(101);
    tenant.add(&lab);
    tenant.check(&lab);
    reaches(&tenant.container.netns, &client(80), "client");
}

#[test]
fn a_container_with_anti_spoof_sends_from_its_own_addresses_only() {
    let (lab, _server) = dropping_lab();
    for iptables in ["iptables", "ip6tables"] {
        lab.host.run(&format!("{iptables} -w -P FORWARD ACCEPT"));
    }
    let spoofs = |tenant: &Tenant, to: &[String; 2]| {
        for (from, to) in ["10.88.0.99:0", "[fd00:88::99]:0"].iter().zip(to) {
            Fetch::new(Proto::Tcp, to).source(from).expect_nothing(&tenant.container.netns);
        }
    };
    let tenant = Tenant::new(&lab, 2, json!({"antiSpoof": true}));
    let neighbour = Tenant::new(&lab, 3, json!({}));
    // The way is known before: a question for it with a false source would spoil it for the true one for seconds.
    reaches(&tenant.container.netns, &client(80), "client");
    reaches(&tenant.container.netns, &neighbour.at(80), "container 3");
    tenant.container.netns.address("eth0", "10.88.0.99/24");
    tenant.container.netns.address("eth0", "fd00:88::99/64");
    Fetch::new(Proto::Tcp, &client(80)[0]).source("10.88.0.99:0").expect(&tenant.container.netns, "client");
    tenant.add(&lab);
    tenant.check(&lab);
    spoofs(&tenant, &client(80));
    spoofs(&tenant, &neighbour.at(80));
    // The kernel would choose it by itself.
    tenant.container.netns.run("ip address del fd00:88::99/64 dev eth0");
    reaches(&tenant.container.netns, &client(80), "client");
    reaches(&tenant.container.netns, &neighbour.at(80), "container 3");
    reaches(&neighbour.container.netns, &tenant.at(80), "container 2");
    tenant.del(&lab);
    Fetch::new(Proto::Tcp, &client(80)[0]).source("10.88.0.99:0").expect(&tenant.container.netns, "client");
}

#[test]
fn anti_spoof_works_without_a_bridge_and_leaves_no_hook_behind_for_others() {
    let (lab, _server) = dropping_lab();
    let tenant = Tenant::new(&lab, 2, json!({"antiSpoof": true}));
    lab.host.run("ip link set veth2 nomaster");
    for (gateway, address) in ["10.88.0.1/32", "fd00:88::1/128"].iter().zip(&tenant.container.addresses) {
        lab.host.run(&format!("ip address flush dev cni0 to {gateway}"));
        lab.host.address("veth2", gateway);
        lab.host.run(&format!("ip route add {address} dev veth2"));
    }
    let mut config = tenant.config.clone();
    config["prevResult"]["interfaces"].as_array_mut().unwrap().remove(0);
    call(&lab.host, Verb::Add, &config, &tenant.container.target()).succeeds();
    call(&lab.host, Verb::Check, &config, &tenant.container.target()).succeeds();
    reaches(&tenant.container.netns, &client(80), "client");
    // Not even the host itself hears it.
    let _host = serve(&lab.host, 81, "host");
    tenant.container.netns.address("eth0", "10.88.0.99/24");
    lab.host.run("ip route add 10.88.0.99 dev veth2");
    Fetch::new(Proto::Tcp, &host_at(81)[0]).expect(&tenant.container.netns, "host");
    Fetch::new(Proto::Tcp, &host_at(81)[0]).source("10.88.0.99:0").expect_nothing(&tenant.container.netns);
    call(&lab.host, Verb::Del, &config, &tenant.container.target()).succeeds();
    Fetch::new(Proto::Tcp, &host_at(81)[0]).source("10.88.0.99:0").expect(&tenant.container.netns, "host");

    let plain = Lab::new();
    let other = Tenant::new(&plain, 2, json!({}));
    other.add(&plain);
    assert!(!plain.host.run("nft list ruleset").contains("hook prerouting"));
}

/// Whether a container learns a neighbour's hardware address.
fn resolves(from: &Netns, address: &str) -> bool {
    from.run("ip neigh flush all");
    let to = if address.contains(':') { format!("[{address}]:80") } else { format!("{address}:80") };
    let _ = Fetch::new(Proto::Tcp, &to).within(BRIEFLY).from(from);
    from.run(&format!("ip neigh show {address}")).contains("lladdr")
}

#[test]
fn a_container_with_anti_spoof_can_not_claim_anothers_address_by_arp_or_neighbour_discovery() {
    let lab = Lab::new();
    let liar = Tenant::new(&lab, 2, json!({"antiSpoof": true}));
    let neighbour = Tenant::new(&lab, 3, json!({}));
    let claimed = ["10.88.0.99", "fd00:88::99"];
    liar.container.netns.address("eth0", "10.88.0.99/24");
    liar.container.netns.address("eth0", "fd00:88::99/64");
    for address in claimed {
        assert!(resolves(&neighbour.container.netns, address), "{address}: nobody keeps it from lying yet");
    }
    liar.add(&lab);
    liar.check(&lab);
    for address in claimed {
        assert!(!resolves(&neighbour.container.netns, address), "{address}");
    }
    for address in &liar.container.addresses {
        assert!(resolves(&neighbour.container.netns, address), "{address} is its own");
    }
    // Its link-local address is its own, too.
    let shown = liar.container.netns.run("ip -6 -o address show dev eth0 scope link");
    let own = shown.split_whitespace().find_map(|word| word.strip_suffix("/64")).unwrap().to_owned();
    neighbour.container.netns.run(&format!("ping -6 -c 1 -W 5 {own}%eth0"));
    liar.del(&lab);
    assert!(resolves(&neighbour.container.netns, claimed[0]));
}

/// Sends an ICMPv6 message to all nodes on the link, with the hop limit that RFC 4861 asks for.
fn tell_all_nodes(from: &Netns, message: &[u8]) {
    use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockProtocol, SockType};
    from.inside(|| {
        let raw =
            nix::sys::socket::socket(AddressFamily::Inet6, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::IcmpV6)
                .unwrap();
        let index = nix::net::if_::if_nametoindex("eth0").unwrap();
        let all_nodes = std::net::SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, index);
        nix::sys::socket::sendmsg(
            std::os::fd::AsRawFd::as_raw_fd(&raw),
            &[std::io::IoSlice::new(message)],
            &[ControlMessage::Ipv6HopLimit(&255)],
            MsgFlags::empty(),
            Some(&nix::sys::socket::SockaddrIn6::from(all_nodes)),
        )
        .unwrap();
    });
}

/// A router advertisement (RFC 4861, 4.2): a router for half an hour.
fn advertise_as_router(from: &Netns) {
    tell_all_nodes(from, &[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
}

/// An advertisement that overrides what is known (RFC 4861, 4.4): this address is at 02:00:00:00:66:66.
fn claim(from: &Netns, address: &str) {
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(address.parse::<std::net::Ipv6Addr>().unwrap().octets());
    message.extend([2, 1, 2, 0, 0, 0, 0x66, 0x66]);
    tell_all_nodes(from, &message);
}

#[test]
fn an_advertisement_for_anothers_address_is_dropped_even_if_its_source_is_true() {
    let lab = Lab::new();
    let liar = Tenant::new(&lab, 2, json!({"antiSpoof": true}));
    let victim = Tenant::new(&lab, 3, json!({}));
    let known = || victim.container.netns.run("ip neigh show fd00:88::99 dev eth0");
    let forget =
        || victim.container.netns.run("ip neigh replace fd00:88::99 lladdr 02:00:00:00:00:99 dev eth0 nud stale");
    liar.container.netns.settle();
    forget();
    claim(&liar.container.netns, "fd00:88::99");
    victim.container.netns.wait_until("it is believed", || known().contains("66:66"));
    forget();
    liar.add(&lab);
    claim(&liar.container.netns, "fd00:88::99");
    // What comes later has come: so the first would have.
    let own = format!("ip neigh replace {} lladdr 02:00:00:00:00:02 dev eth0 nud stale", liar.container.addresses[1]);
    victim.container.netns.run(&own);
    claim(&liar.container.netns, &liar.container.addresses[1]);
    let show = format!("ip neigh show {} dev eth0", liar.container.addresses[1]);
    victim.container.netns.wait_until("its own is believed", || victim.container.netns.run(&show).contains("66:66"));
    assert!(known().contains("00:99"), "{}", known());
}

#[test]
fn a_container_with_anti_spoof_can_not_pass_for_a_router() {
    let lab = Lab::new();
    let liar = Tenant::new(&lab, 2, json!({"antiSpoof": true}));
    let (victim, other) = (Tenant::new(&lab, 3, json!({})), Tenant::new(&lab, 4, json!({})));
    victim.container.netns.set_sysctl("net/ipv6/conf/eth0/accept_ra", "2");
    let routers = || victim.container.netns.run("ip -6 route show default proto ra");
    liar.container.netns.settle();
    advertise_as_router(&liar.container.netns);
    victim.container.netns.wait_until("it is believed", || !routers().is_empty());
    victim.container.netns.run("ip -6 route flush proto ra");
    liar.add(&lab);
    advertise_as_router(&liar.container.netns);
    // What comes later has come, so the first would have.
    advertise_as_router(&other.container.netns);
    victim.container.netns.wait_until("another router is believed", || !routers().is_empty());
    let shown = liar.container.netns.run("ip -6 -o address show dev eth0 scope link");
    let liars = shown.split_whitespace().find_map(|word| word.strip_suffix("/64")).unwrap();
    assert!(!routers().contains(liars), "{}", routers());
}

#[test]
fn after_a_flush_of_all_rules_the_next_add_of_anyone_brings_everybodys_share_back() {
    let (lab, _server) = dropping_lab();
    let plain = Tenant::new(&lab, 2, json!({}));
    let keys = json!({"ingressPolicy": "isolated", "antiSpoof": true, "iptablesAdminChainName": "MINE"});
    let guarded = Tenant::new(&lab, 3, keys);
    let removed = Tenant::new(&lab, 4, json!({}));
    let mut next = Tenant::new(&lab, 5, json!({}));
    for tenant in [&plain, &guarded, &removed, &next] {
        tenant.add(&lab);
    }
    next.del(&lab);
    removed.del(&lab);
    removed.add(&lab);
    let with_removed = sorted_rules(&lab.host);
    lab.host.run("nft flush ruleset");
    lab.host.drop_forwarded();
    is_cut_off(&plain.container.netns, &client(80));
    // One that goes before anybody comes doesn't come back.
    let mut bare = removed.config.clone();
    bare.as_object_mut().unwrap().remove("prevResult");
    call(&lab.host, Verb::Del, &bare, &removed.container.target().without_netns()).succeeds();
    // A file that can't be read is no reason to fail.
    lab.host.write("/run/cni/firewall/garbage", "{");
    // Even if it needs neither the other version of IP nor the bridge's table.
    next.config["prevResult"]["ips"].as_array_mut().unwrap().pop();
    next.add(&lab);
    plain.check(&lab);
    guarded.check(&lab);
    next.check(&lab);
    reaches(&plain.container.netns, &client(80), "client");
    reaches(&guarded.container.netns, &client(80), "client");
    is_cut_off(&removed.container.netns, &client(80));
    is_cut_off(&plain.container.netns, &guarded.at(80));
    assert!(!lab.host.run("nft list ruleset").contains("container-4"));
    removed.add(&lab);
    next.del(&lab);
    assert_eq!(sorted_rules(&lab.host), with_removed, "nothing is doubled or lost");
}

#[test]
fn of_two_that_had_an_address_the_latest_has_it_after_a_flush() {
    let (lab, _server) = dropping_lab();
    let (new, next) = (Tenant::new(&lab, 2, json!({})), Tenant::new(&lab, 3, json!({})));
    let mut old = new.container.target();
    old.container = "old-container".into();
    call(&lab.host, Verb::Add, &new.config, &old).succeeds();
    new.add(&lab);
    lab.host.run("nft flush ruleset");
    lab.host.drop_forwarded();
    next.add(&lab);
    new.check(&lab);
    call(&lab.host, Verb::Del, &new.config, &old).succeeds();
    new.check(&lab);
    reaches(&new.container.netns, &client(80), "client");
}

#[test]
fn del_knows_what_to_remove_even_if_its_record_was_flushed() {
    let (lab, _server) = dropping_lab();
    let (stays, goes) =
        (Tenant::new(&lab, 2, json!({})), Tenant::new(&lab, 3, json!({"ingressPolicy": "same-bridge"})));
    stays.add(&lab);
    goes.add(&lab);
    lab.host.run("nft flush map inet cni_chain_firewall records");
    let mut bare = goes.config.clone();
    bare.as_object_mut().unwrap().remove("prevResult");
    call(&lab.host, Verb::Del, &bare, &goes.container.target().without_netns()).succeeds();
    let left = lab.host.run("nft list ruleset");
    for gone in ["10.88.0.3", "fd00:88::3", "container-3", "cni0"] {
        assert!(!left.contains(gone), "{gone} is left: {left}");
    }
    stays.add(&lab);
    stays.check(&lab);
    reaches(&stays.container.netns, &client(80), "client");
}

#[test]
fn no_packet_and_no_transaction_meets_what_is_one_containers_own() {
    let lab = Lab::new();
    let keys = json!({"ingressPolicy": "isolated", "antiSpoof": true});
    let tenants = [2, 3].map(|n| Tenant::new(&lab, n, keys.clone()));
    let skeleton = |lab: &Lab| {
        let rules = lab.host.run("nft --stateless list ruleset");
        assert!(!rules.contains("vmap") && !rules.contains("@records"), "no verdict hangs on an element: {rules}");
        rules.split("chain ").map(str::to_owned).collect::<Vec<_>>()
    };
    tenants[0].add(&lab);
    let one = skeleton(&lab);
    tenants[1].add(&lab);
    let records = lab.host.run("nft list map inet cni_chain_firewall records");
    for tenant in &tenants {
        assert!(records.contains(&format!("comment \"net/{}/eth0\"", tenant.container.id)), "{records}");
    }
    let chains = |all: &[String]| all.iter().filter(|c| !c.contains("elements")).cloned().collect::<Vec<_>>();
    assert_eq!(chains(&skeleton(&lab)), chains(&one), "a second container adds no chain and no rule");
}

#[test]
fn anti_spoof_never_takes_a_macvlans_parent_for_the_containers_own_end() {
    let lab = Lab::new();
    let mut tenant = Tenant::new(&lab, 2, json!({"antiSpoof": true}));
    let netns = Netns::new("macvlan");
    lab.host.run("ip link add mv0 link ext0 type macvlan mode bridge");
    lab.host.run(&format!("ip link set mv0 netns {}", netns.path()));
    netns.run("ip link set mv0 name eth0");
    tenant.config["prevResult"]["interfaces"] = json!([{"name": "eth0", "sandbox": netns.path()}]);
    let before = lab.host.run("nft list ruleset");
    let target = Target::new("macvlan", &netns.path(), "eth0");
    let error = call(&lab.host, Verb::Add, &tenant.config, &target).fails_with(2);
    assert!(error.msg.contains("antiSpoof"), "{error:?}");
    assert_eq!(lab.host.run("nft list ruleset"), before);
}

/// The same configuration in a version that the reference speaks.
fn for_the_reference(tenant: &Tenant) -> Value {
    let mut config = tenant.config.clone();
    config["cniVersion"] = "1.0.0".into();
    config["prevResult"] = tenant.container.prev_result("1.0.0");
    config
}

#[test]
fn the_reference_s_rules_go_with_their_container_and_its_chains_with_the_last() {
    let (lab, _server) = dropping_lab();
    let policy = json!({"ingressPolicy": "same-bridge"});
    let (first, last) = (Tenant::new(&lab, 2, policy.clone()), Tenant::new(&lab, 3, policy.clone()));
    let ours = Tenant::new(&lab, 4, policy);
    for tenant in [&first, &last] {
        let config = for_the_reference(tenant);
        Plugin::reference("firewall").call(&lab.host, Verb::Add, &config, &tenant.container.target()).succeeds();
    }
    ours.add(&lab);
    ours.check(&lab);
    reaches(&last.container.netns, &client(80), "client");
    let rules = |address: &str| lab.host.run("iptables-save").matches(&format!("{address}/32 ")).count();
    assert_eq!((rules("10.88.0.2"), rules("10.88.0.3")), (2, 2));

    call(&lab.host, Verb::Del, &for_the_reference(&first), &first.container.target()).succeeds();
    assert_eq!((rules("10.88.0.2"), rules("10.88.0.3")), (0, 2));
    assert!(lab.host.run("iptables-save").contains("CNI-ISOLATION"), "the other container still needs it");
    call(&lab.host, Verb::Del, &for_the_reference(&last), &last.container.target()).succeeds();
    for save in ["iptables-save", "ip6tables-save"] {
        let saved = lab.host.run(save);
        assert!(!saved.contains("CNI-ISOLATION") && !saved.contains("conntrack"), "{saved}");
    }
    ours.check(&lab);
    reaches(&ours.container.netns, &client(80), "client");
}

#[test]
fn gc_removes_the_reference_s_rules_for_addresses_that_are_ours_now() {
    let (lab, _server) = dropping_lab();
    let (taken_over, still_theirs) = (Tenant::new(&lab, 2, json!({})), Tenant::new(&lab, 3, json!({})));
    for tenant in [&taken_over, &still_theirs] {
        let config = for_the_reference(tenant);
        Plugin::reference("firewall").call(&lab.host, Verb::Add, &config, &tenant.container.target()).succeeds();
    }
    taken_over.add(&lab);
    let mut gc = json!({"cniVersion": VERSION, "name": "net", "type": "firewall"});
    gc["cni.dev/valid-attachments"] = json!([{"containerID": taken_over.container.id, "ifname": "eth0"}]);
    call(&lab.host, Verb::Gc, &gc, &Target::new("", "", "")).succeeds();
    let saved = lab.host.run("iptables-save");
    assert!(!saved.contains("10.88.0.2/32") && saved.contains("10.88.0.3/32"), "{saved}");
    reaches(&taken_over.container.netns, &client(80), "client");
    reaches(&still_theirs.container.netns, &client(80), "client");
}

#[test]
fn the_reference_goes_on_working_beside_us() {
    let (lab, _server) = dropping_lab();
    let (ours, theirs) = (Tenant::new(&lab, 2, json!({})), Tenant::new(&lab, 3, json!({})));
    ours.add(&lab);
    let config = for_the_reference(&theirs);
    for verb in [Verb::Add, Verb::Check] {
        Plugin::reference("firewall").call(&lab.host, verb, &config, &theirs.container.target()).succeeds();
    }
    ours.check(&lab);
    reaches(&ours.container.netns, &client(80), "client");
    reaches(&theirs.container.netns, &client(80), "client");
    assert_eq!(lab.host.run("iptables-save").matches("-j CNI-FORWARD").count(), 1, "it takes our jump for its own");
}

/// A host whose iptables are the legacy ones and drop.
fn legacy_lab() -> (Lab, Server) {
    let lab = Lab::new();
    for iptables in ["iptables-legacy", "ip6tables-legacy"] {
        lab.host.run(&format!("{iptables} -w -P FORWARD DROP"));
    }
    let server = serve(&lab.client, 80, "client");
    (lab, server)
}

#[test]
fn a_container_gets_out_of_a_host_whose_legacy_iptables_drop() {
    let (lab, _server) = legacy_lab();
    let tenant = Tenant::new(&lab, 2, json!({}));
    tenant.call(&lab, Verb::Check).fails_with(101);
    is_cut_off(&tenant.container.netns, &client(80));
    tenant.add(&lab);
    tenant.check(&lab);
    reaches(&tenant.container.netns, &client(80), "client");
    is_cut_off(&lab.client, &tenant.at(80));
    assert!(!lab.host.run("nft list tables").contains(" filter"), "the other iptables aren't mixed in");
    for iptables in ["iptables-legacy", "ip6tables-legacy"] {
        let rules = lab.host.run(&format!("{iptables} -w -S"));
        for line in [
            "-A FORWARD -m comment --comment \"CNI firewall plugin rules\" -j CNI-FORWARD",
            "-A CNI-FORWARD -m comment --comment \"CNI firewall plugin admin overrides\" -j CNI-ADMIN",
            "-A CNI-FORWARD -m mark --mark 0x1000/0x1000 -m comment --comment \"CNI firewall plugin: admitted\" -j ACCEPT",
        ] {
            assert!(rules.lines().any(|l| l == line), "{iptables} -S lacks {line}:\n{rules}");
        }
    }
    // Overrides stay, nothing is doubled, and a loss is seen and mended.
    lab.host.run("iptables-legacy -w -A CNI-ADMIN -d 203.0.113.1 -j DROP");
    lab.host.run("iptables-legacy -w -D FORWARD 1");
    let error = tenant.call(&lab, Verb::Check).fails_with(101);
    assert!(error.details.contains("iptables-legacy"), "{error:?}");
    tenant.add(&lab);
    tenant.add(&lab);
    let rules = lab.host.run("iptables-legacy -w -S");
    assert_eq!(rules.matches("-j CNI-FORWARD").count(), 1, "{rules}");
    assert!(rules.contains("-A CNI-ADMIN -d 203.0.113.1/32 -j DROP"), "{rules}");
    tenant.del(&lab);
    is_cut_off(&tenant.container.netns, &client(80));
}

#[test]
fn legacy_and_nft_tables_are_looked_at_family_by_family() {
    let lab = Lab::new();
    let _server = serve(&lab.client, 80, "client");
    lab.host.run("iptables-legacy -w -P FORWARD DROP");
    lab.host.run("ip6tables -w -P FORWARD DROP");
    let tenant = Tenant::new(&lab, 2, json!({}));
    tenant.add(&lab);
    tenant.check(&lab);
    reaches(&tenant.container.netns, &client(80), "client");
    let tables = lab.host.run("nft list tables");
    assert!(tables.contains("ip6 filter") && !tables.contains("ip filter"), "{tables}");
}

#[test]
fn a_legacy_table_that_is_not_in_use_is_neither_made_nor_touched() {
    let (lab, _server) = dropping_lab();
    let before = lab.host.run("iptables-legacy -w -S");
    let tenant = Tenant::new(&lab, 2, json!({}));
    tenant.add(&lab);
    tenant.check(&lab);
    assert_eq!(lab.host.run("iptables-legacy -w -S"), before);
    assert!(!lab.host.read("/proc/thread-self/net/ip6_tables_names").contains("filter"));
}

#[test]
fn twenty_at_once_on_a_legacy_host_leave_nothing_doubled() {
    let (lab, _server) = legacy_lab();
    let netns = Netns::new("container");
    std::thread::scope(|scope| {
        for n in 1..=20 {
            let target = Target::new(&format!("c{n}"), &netns.path(), "eth0");
            let prev = json!({"cniVersion": VERSION, "ips": [{"address": format!("10.88.7.{n}/16")}]});
            let config = json!({"cniVersion": VERSION, "name": "net", "type": "firewall", "prevResult": prev});
            let lab = &lab;
            scope.spawn(move || drop(call(&lab.host, Verb::Add, &config, &target).succeeds()));
        }
    });
    let rules = lab.host.run("iptables-legacy -w -S");
    assert_eq!(rules.matches("-j CNI-FORWARD").count(), 1, "{rules}");
    assert_eq!(rules.matches("--mark").count(), 1, "{rules}");
}

#[test]
fn without_the_legacy_program_the_exact_commands_are_said() {
    let (lab, _server) = legacy_lab();
    let tenant = Tenant::new(&lab, 2, json!({}));
    // A host that has the tables and not the program.
    lab.host.run("mount -t tmpfs tmpfs /usr/sbin");
    let error = tenant.call(&lab, Verb::Add).fails_with(103);
    lab.host.run("/usr/bin/umount /usr/sbin");
    for command in ["iptables-legacy -N CNI-FORWARD", "iptables-legacy -I FORWARD 1 -m comment", "--mark 0x1000/0x1000"]
    {
        assert!(error.details.contains(command), "{error:?}");
    }
    assert!(!lab.host.run("nft list ruleset").contains("cni_chain_firewall"), "nothing else is done");
    // What is said to do by hand is enough.
    for command in error.details.trim_start_matches("put it in by hand: ").split("; ") {
        lab.host.pipe("sh -s", command).unwrap();
    }
    let error = tenant.call(&lab, Verb::Check).fails_with(101);
    assert!(!error.details.contains("iptables-legacy -t filter"), "{error:?}");
}

#[test]
fn the_reference_s_rules_go_from_legacy_tables_too() {
    let (lab, _server) = legacy_lab();
    // The reference executes `iptables`: here that is the legacy one.
    lab.host.run("mkdir -p /run/legacy");
    for name in ["iptables", "ip6tables", "iptables-save", "ip6tables-save", "iptables-restore", "ip6tables-restore"] {
        let legacy = name.replacen("tables", "tables-legacy", 1);
        lab.host.run(&format!("ln -s /usr/sbin/{legacy} /run/legacy/{name}"));
    }
    let policy = json!({"ingressPolicy": "same-bridge"});
    let (first, last) = (Tenant::new(&lab, 2, policy.clone()), Tenant::new(&lab, 3, policy.clone()));
    let ours = Tenant::new(&lab, 4, policy);
    for tenant in [&first, &last] {
        let target = tenant.container.target();
        let mut command = lab.host.command("env");
        command.args(["PATH=/run/legacy:/usr/sbin:/usr/bin:/sbin:/bin", "CNI_COMMAND=ADD", "CNI_PATH=/usr/lib/cni"]);
        command.args([
            format!("CNI_CONTAINERID={}", target.container),
            format!("CNI_NETNS={}", target.netns),
            "CNI_IFNAME=eth0".into(),
        ]);
        command.arg(Plugin::reference("firewall").path());
        lab.host.write("/run/stdin.json", for_the_reference(tenant).to_string());
        let stdin = lab.host.inside(|| std::fs::File::open("/run/stdin.json").unwrap());
        let done = command.stdin(stdin).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    }
    ours.add(&lab);
    let rules = |address: &str| {
        let all = ["iptables", "ip6tables"].map(|i| lab.host.run(&format!("{i}-legacy -w -S")));
        all.concat().matches(&format!(" {address}/")).count()
    };
    assert_eq!((rules("10.88.0.2"), rules("fd00:88::2"), rules("10.88.0.3")), (2, 2, 2));
    call(&lab.host, Verb::Del, &for_the_reference(&first), &first.container.target()).succeeds();
    assert_eq!((rules("10.88.0.2"), rules("fd00:88::2"), rules("10.88.0.3")), (0, 0, 2));
    assert!(lab.host.run("iptables-legacy -w -S").contains("CNI-ISOLATION"), "the other container still needs it");
    // The other goes by GC, once its address is ours.
    last.add(&lab);
    let mut gc = json!({"cniVersion": VERSION, "name": "net", "type": "firewall"});
    let valid = [&last, &ours].map(|t| json!({"containerID": t.container.id, "ifname": "eth0"}));
    gc["cni.dev/valid-attachments"] = json!(valid);
    for _ in 0..2 {
        call(&lab.host, Verb::Gc, &gc, &Target::new("", "", "")).succeeds();
        for iptables in ["iptables", "ip6tables"] {
            let left = lab.host.run(&format!("{iptables}-legacy -w -S"));
            assert!(!left.contains("CNI-ISOLATION") && !left.contains("conntrack"), "{left}");
        }
    }
    for tenant in [&ours, &last] {
        tenant.check(&lab);
        reaches(&tenant.container.netns, &client(80), "client");
    }
}

/// The real ufw, with what it writes kept to this host. Its defaults forward nothing.
struct Ufw<'a>(&'a Host);

impl Ufw<'_> {
    #[track_caller]
    fn enable(host: &Host) -> Ufw<'_> {
        for directory in ["/etc/ufw", "/etc/default"] {
            let copy = format!("/run{directory}");
            host.run(&format!("mkdir -p {copy}"));
            host.run(&format!("cp -a {directory}/. {copy}"));
            host.run(&format!("mount --bind {copy} {directory}"));
        }
        host.run("ufw --force enable");
        assert!(host.run("ufw status verbose").contains("deny (routed)"));
        Ufw(host)
    }
}

impl Drop for Ufw<'_> {
    fn drop(&mut self) {
        let _ = self.0.try_run("ufw --force disable");
    }
}

#[test]
fn ufw_goes_on_working_and_what_is_admitted_passes_it() {
    let lab = Lab::new();
    let _server = serve(&lab.client, 80, "client");
    let _ufw = Ufw::enable(&lab.host);
    lab.host.forward(true);
    let tenant = Tenant::new(&lab, 2, json!({}));
    is_cut_off(&tenant.container.netns, &client(80));
    tenant.add(&lab);
    tenant.check(&lab);
    reaches(&tenant.container.netns, &client(80), "client");
    is_cut_off(&lab.client, &tenant.at(80));
    // Its own commands go on working on the tables, and ours stays where it is.
    lab.host.run("ufw allow 22/tcp");
    lab.host.run("ufw route allow in on ext0 to 10.88.0.2 port 80 proto tcp");
    Fetch::new(Proto::Tcp, &tenant.at(80)[0]).expect(&lab.client, "container 2");
    lab.host.run("ufw reload");
    lab.host.forward(true);
    assert!(lab.host.run("ufw status").contains("22/tcp"));
    if tenant.call(&lab, Verb::Check).exit != 0 {
        tenant.add(&lab);
    }
    tenant.check(&lab);
    reaches(&tenant.container.netns, &client(80), "client");
    for iptables in ["iptables", "ip6tables"] {
        let saved = lab.host.run(&format!("{iptables}-save"));
        assert!(saved.contains("ufw") && saved.matches("-j CNI-FORWARD").count() == 1, "{saved}");
        lab.host.pipe(&format!("{iptables}-restore --test"), &saved).unwrap();
    }
    lab.host.run("ufw --force disable");
    tenant.add(&lab);
    tenant.check(&lab);
}

/// What kube-proxy 1.31 in iptables mode sends to `iptables-restore --noflush --counters` for the filter table, where
/// there is one service without endpoints.
const KUBE_PROXY: &str = "*filter
:KUBE-NODEPORTS - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A KUBE-SERVICES -m comment --comment \"default/web has no endpoints\" -m tcp -p tcp -d ADDRESS --dport 80 -j REJECT
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
";

/// What it inserts by `iptables -I`, one call each.
const KUBE_JUMPS: [&str; 3] = [
    "FORWARD -m conntrack --ctstate NEW -m comment --comment kubernetes-load-balancer-firewall -j KUBE-PROXY-FIREWALL",
    "FORWARD -m comment --comment kubernetes-forwarding-rules -j KUBE-FORWARD",
    "FORWARD -m conntrack --ctstate NEW -m comment --comment kubernetes-service-portals -j KUBE-SERVICES",
];

/// What dockerd 24 makes in the filter table at its start.
const DOCKER: [&str; 17] = [
    "-N DOCKER",
    "-N DOCKER-ISOLATION-STAGE-1",
    "-N DOCKER-ISOLATION-STAGE-2",
    "-N DOCKER-USER",
    "-A DOCKER-ISOLATION-STAGE-1 -j RETURN",
    "-A DOCKER-ISOLATION-STAGE-2 -j RETURN",
    "-P FORWARD DROP",
    "-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "-A FORWARD -o docker0 -j DOCKER",
    "-A FORWARD -i docker0 ! -o docker0 -j ACCEPT",
    "-A FORWARD -i docker0 -o docker0 -j ACCEPT",
    "-I DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2",
    "-I DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP",
    "-I FORWARD -j DOCKER-ISOLATION-STAGE-1",
    "-A DOCKER-USER -j RETURN",
    "-D FORWARD -j DOCKER-ISOLATION-STAGE-1",
    "-I FORWARD -j DOCKER-ISOLATION-STAGE-1",
];

#[test]
fn docker_and_kube_proxy_go_on_working_beside_us_in_either_order() {
    for (kind, ours_first) in [("", true), ("", false), ("-legacy", true), ("-legacy", false)] {
        let lab = Lab::new();
        let _server = serve(&lab.client, 80, "client");
        let tenant = Tenant::new(&lab, 2, json!({}));
        let programs = ["iptables", "ip6tables"].map(|name| format!("{name}{kind}"));
        for program in &programs {
            lab.host.run(&format!("{program} -w -P FORWARD DROP"));
        }
        if ours_first {
            tenant.add(&lab);
        }
        for (program, service) in programs.iter().zip(["203.0.113.1", "2001:db8:9::1"]) {
            DOCKER.iter().for_each(|line| drop(lab.host.run(&format!("{program} -w {line}"))));
            lab.host.run(&format!("{program} -w -I FORWARD -j DOCKER-USER"));
            let script = KUBE_PROXY.replace("ADDRESS", service);
            for _ in 0..2 {
                lab.host.pipe(&format!("{program}-restore -w 5 --noflush --counters"), &script).unwrap();
            }
            KUBE_JUMPS.iter().for_each(|jump| drop(lab.host.run(&format!("{program} -w -I {jump}"))));
        }
        if !ours_first {
            tenant.add(&lab);
        }
        tenant.check(&lab);
        reaches(&tenant.container.netns, &client(80), "client");
        is_cut_off(&lab.client, &tenant.at(80));
        for program in &programs {
            // They find what they have made, and read all of the table.
            for jump in
                KUBE_JUMPS.iter().chain(&["FORWARD -j DOCKER-USER", "FORWARD -i docker0 ! -o docker0 -j ACCEPT"])
            {
                lab.host.run(&format!("{program} -w -C {jump}"));
            }
            let saved = lab.host.run(&format!("{program}-save"));
            assert!(saved.contains(":KUBE-FORWARD") && saved.contains(":CNI-FORWARD"), "{saved}");
            lab.host.pipe(&format!("{program}-restore"), &saved).unwrap();
            lab.host.run(&format!("{program} -w -L -v -n"));
        }
        tenant.check(&lab);
        reaches(&tenant.container.netns, &client(80), "client");
        tenant.del(&lab);
        is_cut_off(&tenant.container.netns, &client(80));
    }
}

/// Both iptables of one kind: `iptables`, or `iptables-legacy`.
fn iptables(kind: &str) -> [String; 2] {
    ["iptables", "ip6tables"].map(|name| format!("{name}{kind} -w"))
}

#[test]
fn overrides_in_a_legacy_admin_chain_are_in_force_also_where_legacy_forward_accepts() {
    let lab = Lab::new();
    let _server = serve(&lab.client, 80, "client");
    for (iptables, address) in iptables("-legacy").iter().zip(CLIENT) {
        lab.host.run(&format!("{iptables} -N CNI-ADMIN"));
        lab.host.run(&format!("{iptables} -A CNI-ADMIN -d {address} -p tcp --dport 80 -j DROP"));
    }
    let tenant = Tenant::new(&lab, 2, json!({}));
    Fetch::new(Proto::Tcp, &client(80)[0]).expect(&tenant.container.netns, "client");
    tenant.add(&lab);
    tenant.check(&lab);
    is_cut_off(&tenant.container.netns, &client(80));
    assert!(!lab.host.run("nft list tables").contains(" filter"), "the other iptables aren't mixed in");
}

#[test]
fn an_acceptance_in_front_of_the_legacy_admin_chain_is_seen_and_moved_behind_it() {
    let (lab, _server) = legacy_lab();
    let tenant = Tenant::new(&lab, 2, json!({}));
    tenant.add(&lab);
    for (iptables, address) in iptables("-legacy").iter().zip(CLIENT) {
        let admin = "-m comment --comment overrides -j CNI-ADMIN";
        lab.host.run(&format!("{iptables} -D CNI-FORWARD 1"));
        lab.host.run(&format!("{iptables} -A CNI-FORWARD {admin}"));
        lab.host.run(&format!("{iptables} -A CNI-ADMIN -d {address} -j DROP"));
    }
    reaches(&tenant.container.netns, &client(80), "client");
    let error = tenant.call(&lab, Verb::Check).fails_with(101);
    for program in ["of iptables-legacy", "of ip6tables-legacy"] {
        assert!(error.details.contains(program) && error.details.contains("behind CNI-ADMIN"), "{error:?}");
    }
    tenant.add(&lab);
    tenant.check(&lab);
    is_cut_off(&tenant.container.netns, &client(80));
    let rules = lab.host.run("iptables-legacy -w -S CNI-FORWARD");
    assert_eq!(rules.matches("--mark").count(), 1, "{rules}");
}

/// The container, by IPv4 only.
fn only_v4(mut tenant: Tenant) -> Tenant {
    tenant.config["prevResult"]["ips"].as_array_mut().unwrap().pop();
    tenant
}

/// The marks that CNI-FORWARD accepts, of both IP versions.
fn accepted(lab: &Lab, kind: &str) -> Vec<String> {
    let rules = iptables(kind).map(|iptables| lab.host.run(&format!("{iptables} -S"))).concat();
    let marks = rules.lines().filter_map(|line| line.split_once("--mark ")?.1.split_once('/'));
    marks.map(|(mark, _)| mark.to_owned()).collect()
}

#[test]
fn after_an_add_with_another_bit_that_bit_is_accepted_everywhere_and_no_other() {
    for kind in ["", "-legacy"] {
        let lab = Lab::new();
        lab.host.drop_forwarded_by(if kind.is_empty() { "nft" } else { "legacy" });
        let _server = serve(&lab.client, 80, "client");
        lab.host.nft(NATIVE);
        let mut former = Tenant::new(&lab, 2, json!({"hostChains": ["inet filter forward"]}));
        // They have no address of the other version, and name no host chain.
        let keys = json!({"markAdmitBit": 20});
        let later = only_v4(Tenant::new(&lab, 3, keys.clone()));
        let latest = only_v4(Tenant::new(&lab, 4, json!({"markAdmitBit": 21})));
        former.add(&lab);
        reaches(&former.container.netns, &client(80), "client");
        later.add(&lab);
        assert_eq!(accepted(&lab, kind), ["0x100000", "0x100000"], "{kind}");
        reaches(&former.container.netns, &client(80), "client");
        assert!(!lab.host.run("nft list chain inet filter forward").contains("0x00001000"));
        former.config.as_object_mut().unwrap().extend(keys.as_object().cloned().unwrap());
        former.check(&lab);

        // What was written down with the former bit doesn't bring it back.
        lab.host.run("nft flush ruleset");
        lab.host.drop_forwarded_by(if kind.is_empty() { "nft" } else { "legacy" });
        lab.host.nft(NATIVE);
        latest.add(&lab);
        assert_eq!(accepted(&lab, kind), ["0x200000", "0x200000"], "{kind}");
        reaches(&former.container.netns, &client(80), "client");
        lab.host.nft(
            "table inet test { chain pre { type filter hook prerouting priority -300;\n\
             iifname ext0 meta mark set meta mark | 0x00101000\n }\n }",
        );
        is_cut_off(&lab.client, &latest.at(80));
        is_cut_off(&lab.client, &former.at(80));

        // One that somebody brings back is seen, whatever the version, and goes.
        let outdated = "-A CNI-FORWARD -m mark --mark 0x1000/0x1000 -m comment --comment";
        let mut command = lab.host.command(format!("ip6tables{kind}"));
        command.arg("-w").args(outdated.split(' ')).args(["CNI firewall plugin: admitted", "-j", "ACCEPT"]);
        assert!(command.status().unwrap().success());
        let error = latest.call(&lab, Verb::Check).fails_with(101);
        assert!(error.details.contains("CNI-FORWARD") && error.details.contains("0x200000"), "{error:?}");
        let keys = json!({"markAdmitBit": 21, "hostChains": ["inet filter forward"]});
        let error = status(&lab, keys).fails_with(51);
        assert!(error.msg.contains("CNI-FORWARD"), "{error:?}");
        latest.add(&lab);
        latest.check(&lab);
        assert_eq!(accepted(&lab, kind), ["0x200000", "0x200000"], "{kind}");
    }
}

#[test]
fn another_bit_is_accepted_in_a_host_chain_of_which_nothing_is_written_down() {
    let lab = Lab::new();
    let _server = serve(&lab.client, 80, "client");
    lab.host.nft(NATIVE);
    let former = Tenant::new(&lab, 2, json!({"hostChains": ["inet filter forward"]}));
    let later = Tenant::new(&lab, 3, json!({"markAdmitBit": 20}));
    former.add(&lab);
    lab.host.run("rm -r /run/cni/firewall");
    later.add(&lab);
    reaches(&former.container.netns, &client(80), "client");
    let rules = lab.host.run("nft list chain inet filter forward");
    assert!(rules.contains("0x00100000") && !rules.contains("0x00001000"), "{rules}");
}

#[test]
fn check_and_status_name_whatever_lets_nothing_come_to_our_rules() {
    for kind in ["", "-legacy"] {
        let lab = Lab::new();
        lab.host.drop_forwarded_by(if kind.is_empty() { "nft" } else { "legacy" });
        let _server = serve(&lab.client, 80, "client");
        let tenant = Tenant::new(&lab, 2, json!({}));
        tenant.add(&lab);
        let iptables = |line: &str| drop(lab.host.run(&format!("iptables{kind} -w {line}")));
        for line in ["-N EMPTY", "-N PASSING", "-A PASSING -d 203.0.113.7 -j DROP", "-N DROPPING", "-N BEHIND"] {
            iptables(line);
        }
        iptables("-A DROPPING -d 203.0.113.7 -j ACCEPT");
        iptables("-A DROPPING -j BEHIND");
        iptables("-A BEHIND -j DROP");
        for harmless in ["FORWARD -j PASSING", "FORWARD -j EMPTY", "CNI-FORWARD -j PASSING"] {
            iptables(&format!("-I {harmless}"));
            tenant.check(&lab);
            status(&lab, json!({})).succeeds();
            iptables(&format!("-D {harmless}"));
        }
        for stopping in [
            "FORWARD -j RETURN",
            "FORWARD -g EMPTY",
            "FORWARD -g PASSING",
            "FORWARD -j DROPPING",
            "FORWARD -g DROPPING",
            "FORWARD -j DROP",
            "CNI-FORWARD -j RETURN",
            "CNI-FORWARD -j DROPPING",
        ] {
            iptables(&format!("-I {stopping}"));
            Fetch::new(Proto::Tcp, &client(80)[0]).expect_nothing(&tenant.container.netns);
            let error = tenant.call(&lab, Verb::Check).fails_with(101);
            let chain = stopping.split(' ').next().unwrap();
            assert!(
                error.details.contains(&format!("chain {chain}")) || error.details.contains(&format!("filter {chain}")),
                "{kind} {stopping}: {error:?}"
            );
            assert!(error.details.contains("in front of"), "{kind} {stopping}: {error:?}");
            let error = status(&lab, json!({})).fails_with(51);
            assert!(error.msg.contains("in front of"), "{kind} {stopping}: {error:?}");
            iptables(&format!("-D {stopping}"));
        }
        // The administrator's own chain is his business.
        iptables("-A CNI-ADMIN -j DROP");
        tenant.check(&lab);
        iptables("-F CNI-ADMIN");
        tenant.check(&lab);
        reaches(&tenant.container.netns, &client(80), "client");
    }
}

#[test]
fn what_accepts_all_in_front_of_the_admin_chain_is_named() {
    for kind in ["", "-legacy"] {
        let lab = Lab::new();
        lab.host.drop_forwarded_by(if kind.is_empty() { "nft" } else { "legacy" });
        let tenant = Tenant::new(&lab, 2, json!({}));
        tenant.add(&lab);
        lab.host.run(&format!("iptables{kind} -w -I CNI-FORWARD -j ACCEPT"));
        let error = tenant.call(&lab, Verb::Check).fails_with(101);
        assert!(error.details.contains("CNI-FORWARD") && error.details.contains("CNI-ADMIN"), "{kind}: {error:?}");
        lab.host.run(&format!("iptables{kind} -w -D CNI-FORWARD -j ACCEPT"));
        tenant.check(&lab);
    }
}

#[test]
fn a_held_lock_of_xtables_is_a_reason_to_try_again() {
    let (lab, _server) = legacy_lab();
    let tenant = Tenant::new(&lab, 2, json!({}));
    lab.host.run("touch /run/xtables.lock");
    let mut holder = lab.host.command("flock").args(["--no-fork", "/run/xtables.lock", "sleep", "30"]).spawn().unwrap();
    lab.host.wait_until("the lock is held", || lab.host.try_run("flock -n /run/xtables.lock true").is_err());
    let error = tenant.call(&lab, Verb::Add).fails_with(11);
    assert!(error.msg.contains("lock"), "{error:?}");
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn a_host_chain_where_no_packet_bears_the_mark_is_refused_before_anything_is_done() {
    let keys = json!({"hostChains": ["inet filter forward"]});
    for (hook, priority) in [("forward", -10), ("forward", -5), ("forward", 200), ("forward", 201), ("input", 0)] {
        let lab = Lab::new();
        let tenant = Tenant::new(&lab, 2, keys.clone());
        let chain = |priority: i32, hook: &str| {
            lab.host.nft(&format!(
                "table inet filter {{ chain forward {{ type filter hook {hook} priority {priority};\n }}\n }}"
            ));
        };
        chain(priority, hook);
        let before = lab.host.snapshot();
        let error = tenant.call(&lab, Verb::Add).fails_with(2);
        assert!(error.msg.contains("inet filter forward") && error.msg.contains("bear the mark"), "{error:?}");
        let error = status(&lab, keys.clone()).fails_with(50);
        assert!(error.msg.contains("inet filter forward"), "{error:?}");
        lab.host.assert_same_as(&before);

        // It may come to be there.
        lab.host.run("nft delete table inet filter");
        chain(0, "forward");
        tenant.add(&lab);
        tenant.check(&lab);
        lab.host.run("nft delete table inet filter");
        chain(priority, hook);
        let error = tenant.call(&lab, Verb::Check).fails_with(101);
        assert!(error.details.contains("bear the mark"), "{error:?}");
    }
    for priority in [-4, 199] {
        let lab = Lab::new();
        let _server = serve(&lab.client, 80, "client");
        lab.host.nft(&format!(
            "table inet filter {{ chain forward {{ type filter hook forward priority {priority}; policy drop;\n\
             ct state established accept\n }}\n }}"
        ));
        let tenant = Tenant::new(&lab, 2, keys.clone());
        tenant.add(&lab);
        tenant.check(&lab);
        reaches(&tenant.container.netns, &client(80), "client");
    }
}

#[test]
fn check_tells_of_a_host_chain_that_is_gone_with_all_else() {
    let lab = Lab::new();
    lab.host.nft(NATIVE);
    let tenant = Tenant::new(&lab, 2, json!({"hostChains": ["inet filter forward"]}));
    tenant.add(&lab);
    lab.host.run("nft delete table inet filter");
    lab.host.run("nft flush set inet cni_chain_firewall addresses4");
    lab.host.run("iptables -w -F CNI-FORWARD");
    let error = tenant.call(&lab, Verb::Check).fails_with(101);
    for named in ["chain inet filter forward: expected", "10.88.0.2", "CNI-FORWARD", "found nothing"] {
        assert!(error.details.contains(named), "{named}: {error:?}");
    }
    assert!(tenant.call(&lab, Verb::Add).fails_with(2).msg.contains("inet filter forward"));
}

#[test]
fn an_interface_name_that_none_can_have_makes_prev_result_invalid_for_who_needs_interfaces() {
    let lab = Lab::new();
    let mut tenant = Tenant::new(&lab, 2, json!({}));
    tenant.config["prevResult"]["interfaces"][1]["name"] = "sixteen-bytes-xx".into();
    tenant.add(&lab);
    tenant.check(&lab);
    for (key, value) in [("ingressPolicy", json!("isolated")), ("antiSpoof", json!(true))] {
        let mut with = tenant.config.clone();
        with[key] = value;
        let error = call(&lab.host, Verb::Add, &with, &tenant.container.target()).fails_with(7);
        assert!(error.msg.contains("sixteen-bytes-xx"), "{error:?}");
    }
}

#[test]
fn every_add_names_each_chain_that_will_drop_whatever_it_is_called() {
    let (lab, _server) = dropping_lab();
    let (first, second) = (Tenant::new(&lab, 2, json!({})), Tenant::new(&lab, 3, json!({})));
    first.add(&lab);
    lab.host.nft(
        "table inet mine { chain passing { type filter hook forward priority 10; policy drop;\n }\n }\n\
         table ip other { chain dropping { drop\n }\n\
         chain last { type filter hook forward priority 11; ct state established accept\n jump dropping\n }\n }",
    );
    let added = second.call(&lab, Verb::Add);
    added.succeeds();
    for chain in ["chain inet mine passing drops all", "chain ip other last drops all"] {
        assert!(added.stderr.contains(chain), "{chain}: {}", added.stderr);
    }
    is_cut_off(&second.container.netns, &client(80));
    let error = status(&lab, json!({})).fails_with(51);
    assert!(error.msg.contains("inet mine passing"), "{error:?}");
    lab.host.run("nft delete table inet mine");
    let error = status(&lab, json!({})).fails_with(51);
    assert!(error.msg.contains("ip other last"), "{error:?}");
}

#[test]
fn what_concerns_ipv6_alone_is_no_error_of_status_but_said() {
    let lab = Lab::new();
    let chain = "chain forward { type filter hook forward priority 0; policy drop;\n }\n";
    lab.host.nft(&format!("table ip6 filter {{ {chain} }}"));
    let done = status(&lab, json!({}));
    done.succeeds();
    assert!(done.stderr.contains("ip6 filter forward"), "{}", done.stderr);
    lab.host.nft(&format!("table ip filter {{ {chain} }}"));
    assert!(status(&lab, json!({})).fails_with(51).msg.contains("ip filter forward"));

    let lab = Lab::new();
    lab.host.run("ip6tables-legacy -w -P FORWARD DROP");
    lab.host.run("mount -t tmpfs tmpfs /usr/sbin");
    let done = status(&lab, json!({}));
    lab.host.run("/usr/bin/umount /usr/sbin");
    done.succeeds();
    assert!(done.stderr.contains("ip6tables"), "{}", done.stderr);
    lab.host.run("iptables-legacy -w -P FORWARD DROP");
    lab.host.run("mount -t tmpfs tmpfs /usr/sbin");
    status(&lab, json!({})).fails_with(50);
    lab.host.run("/usr/bin/umount /usr/sbin");
}

#[test]
fn of_two_containers_whose_long_names_differ_in_the_middle_each_has_its_own() {
    let (lab, _server) = dropping_lab();
    let tenant = Tenant::new(&lab, 2, json!({}));
    let long = "c".repeat(50);
    let named = |middle: &str| {
        let mut target = tenant.container.target();
        target.container = format!("{long}-{middle}-{long}{long}");
        target
    };
    let (old, new) = (named("1"), named("2"));
    for target in [&old, &new] {
        call(&lab.host, Verb::Add, &tenant.config, target).succeeds();
    }
    for target in [&old, &new] {
        call(&lab.host, Verb::Check, &tenant.config, target).succeeds();
    }
    call(&lab.host, Verb::Del, &tenant.config, &old.without_netns()).succeeds();
    call(&lab.host, Verb::Check, &tenant.config, &new).succeeds();
    reaches(&tenant.container.netns, &client(80), "client");
    call(&lab.host, Verb::Del, &tenant.config, &new.without_netns()).succeeds();
    is_cut_off(&tenant.container.netns, &client(80));
}

#[test]
fn an_address_that_is_none_of_the_containers_own_is_seen_at_its_port_and_taken_away() {
    let lab = Lab::new();
    let keys = json!({"antiSpoof": true});
    let tenant = Tenant::new(&lab, 2, keys.clone());
    let allowed = |address: &str| lab.host.run("nft list ruleset").contains(&format!("\"veth2\" . {address}"));
    tenant.add(&lab);
    for (set, address) in [("sources4", "10.88.0.77"), ("sources6", "fd00:88::77")] {
        lab.host.run(&format!("nft add element bridge cni_chain_firewall {set} {{ veth2 . {address} }}"));
        lab.host.run(&format!("nft add element bridge cni_chain_firewall {set} {{ veth9 . {address} }}"));
        let error = tenant.call(&lab, Verb::Check).fails_with(101);
        assert!(error.details.contains(address) && !error.details.contains("veth9"), "{error:?}");
        tenant.add(&lab);
        tenant.check(&lab);
        assert!(!allowed(address));
    }
    // A container that was never deleted had the interface before, as a guarded one or not.
    let mut dead = tenant.config.clone();
    dead["prevResult"]["ips"] = json!([{"address": "10.88.0.99/24"}]);
    let mut target = tenant.container.target();
    target.container = "dead".into();
    tenant.del(&lab);
    call(&lab.host, Verb::Add, &dead, &target).succeeds();
    assert!(allowed("10.88.0.99"));
    tenant.add(&lab);
    tenant.check(&lab);
    assert!(!allowed("10.88.0.99"));
    tenant.del(&lab);
    call(&lab.host, Verb::Add, &dead, &target).succeeds();
    let mut open = tenant.config.clone();
    open.as_object_mut().unwrap().remove("antiSpoof");
    call(&lab.host, Verb::Add, &open, &tenant.container.target()).succeeds();
    assert!(!allowed("10.88.0.99"));
}

#[test]
fn what_nothing_is_written_down_of_goes_by_del_with_prev_result_and_by_gc() {
    let (lab, _server) = dropping_lab();
    let keys = json!({"antiSpoof": true});
    let (tenant, other) = (Tenant::new(&lab, 2, keys.clone()), Tenant::new(&lab, 3, keys));
    let lose_all = || {
        tenant.add(&lab);
        other.add(&lab);
        lab.host.run("nft flush map inet cni_chain_firewall records");
        lab.host.run("rm -r /run/cni/firewall");
    };
    let elements = |of: &str| lab.host.run("nft list ruleset").matches(of).count();
    lose_all();
    tenant.del(&lab);
    assert_eq!((elements("net/container-2/eth0"), elements("net/container-3/eth0")), (0, 5));
    is_cut_off(&tenant.container.netns, &client(80));

    lose_all();
    let mut config = json!({"cniVersion": VERSION, "name": "elsewhere", "type": "firewall"});
    config["cni.dev/valid-attachments"] = json!([]);
    let gc = |config: &Value| drop(call(&lab.host, Verb::Gc, config, &Target::new("", "", "")).succeeds());
    gc(&config);
    assert_eq!((elements("net/container-2/eth0"), elements("net/container-3/eth0")), (5, 5));
    config["name"] = "net".into();
    config["cni.dev/valid-attachments"] = json!([{"containerID": other.container.id, "ifname": "eth0"}]);
    gc(&config);
    assert_eq!((elements("net/container-2/eth0"), elements("net/container-3/eth0")), (0, 5));
    is_cut_off(&tenant.container.netns, &client(80));
    reaches(&other.container.netns, &client(80), "client");
    other.add(&lab);
    other.check(&lab);
}

/// Calls the reference as on a host whose iptables are of this kind.
#[track_caller]
fn call_the_reference(lab: &Lab, kind: &str, verb: &str, config: &Value, target: &Target) {
    let dir = format!("/run/iptables{kind}");
    if lab.host.try_run(&format!("test -d {dir}")).is_err() {
        lab.host.run(&format!("mkdir {dir}"));
        for name in
            ["iptables", "ip6tables", "iptables-save", "ip6tables-save", "iptables-restore", "ip6tables-restore"]
        {
            let program = name.replacen("tables", &format!("tables{kind}"), 1);
            lab.host.run(&format!("ln -s /usr/sbin/{program} {dir}/{name}"));
        }
    }
    let mut command = lab.host.command("env");
    command.args([format!("PATH={dir}:/usr/sbin:/usr/bin:/sbin:/bin"), format!("CNI_COMMAND={verb}")]);
    command.args([format!("CNI_CONTAINERID={}", target.container), format!("CNI_NETNS={}", target.netns)]);
    command.args(["CNI_IFNAME=eth0", "CNI_PATH=/usr/lib/cni"]).arg(Plugin::reference("firewall").path());
    lab.host.write("/run/stdin.json", config.to_string());
    let done = command.stdin(lab.host.inside(|| std::fs::File::open("/run/stdin.json").unwrap())).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
}

#[test]
fn the_reference_s_isolation_goes_when_none_of_its_containers_is_left_that_lives() {
    for kind in ["-nft", "-legacy"] {
        let lab = Lab::new();
        lab.host.drop_forwarded_by(&kind[1..]);
        let policy = json!({"ingressPolicy": "same-bridge"});
        let (a, theirs, b) =
            (Tenant::new(&lab, 2, json!({})), Tenant::new(&lab, 3, policy), neighbour(&lab, json!({})));
        let isolates = || lab.host.run(&format!("iptables{kind}-save")).contains("CNI-ISOLATION");
        let reference = |verb, tenant: &Tenant, keys: Value| {
            let mut config = for_the_reference(tenant);
            config["prevResult"]["interfaces"] = tenant.config["prevResult"]["interfaces"].clone();
            config.as_object_mut().unwrap().extend(keys.as_object().cloned().unwrap());
            call_the_reference(&lab, kind, verb, &config, &tenant.container.target());
        };
        let on_both = |verb| {
            for tenant in [&a, &b] {
                reference(verb, tenant, json!({"ingressPolicy": "same-bridge"}));
            }
        };
        // It has been here, and leaves its chains behind whenever it goes.
        on_both("ADD");
        on_both("DEL");
        assert!(isolates());
        a.add(&lab);
        b.add(&lab);
        assert!(!isolates(), "{kind}: ADD");
        a.check(&lab);
        Fetch::new(Proto::Tcp, &b.at(80)[0]).expect(&a.container.netns, "neighbour");

        on_both("ADD");
        on_both("DEL");
        let error = a.call(&lab, Verb::Check).fails_with(101);
        assert!(error.details.contains("CNI-ISOLATION-STAGE-1"), "{kind}: {error:?}");
        b.del(&lab);
        assert!(!isolates(), "{kind}: DEL");
        b.add(&lab);

        // A rule that has outlived its container is no reason to keep them; a container that lives is.
        let mut dead = for_the_reference(&theirs);
        dead["prevResult"]["ips"] = json!([{"address": "10.88.0.99/24", "interface": 2}]);
        call_the_reference(&lab, kind, "ADD", &dead, &theirs.container.target());
        reference("ADD", &theirs, json!({}));
        let gc = json!({"cniVersion": VERSION, "name": "net", "type": "firewall", "cni.dev/valid-attachments":
            [{"containerID": a.container.id, "ifname": "eth0"}, {"containerID": b.container.id, "ifname": "eth0"}]});
        let collect = || drop(call(&lab.host, Verb::Gc, &gc, &Target::new("", "", "")).succeeds());
        a.add(&lab);
        collect();
        assert!(isolates(), "{kind}: it lives");
        a.check(&lab);
        // Deleting the link would change the bridge's hardware address.
        theirs.container.netns.run("ip address flush dev eth0");
        collect();
        assert!(!isolates(), "{kind}: GC");
        a.check(&lab);
        Fetch::new(Proto::Tcp, &b.at(80)[0]).expect(&a.container.netns, "neighbour");
    }
}
