<?php
// Runs Roundcube from the command line, through its own classes:
//   php roundcube.php FOLDER install | write NAME | read
// FOLDER: the unpacked package. ROUNDCUBE_CONFIG_DIR is the directory of its configuration.

[$_, $folder, $action] = $argv;
define('INSTALL_PATH', "$folder/");
require INSTALL_PATH . 'program/include/clisetup.php';
$database = rcmail::get_instance()->get_dbh();

function must($done, string $what) {
    if (!$done) {
        fwrite(STDERR, "$what failed\n");
        exit(1);
    }
    return $done;
}

switch ($action) {
    case 'install':
        $kind = $database->db_provider === 'postgres' ? 'postgres' : 'mysql';
        must($database->exec_script(file_get_contents(INSTALL_PATH . "SQL/$kind.initial.sql")), 'the installation');
        break;
    case 'write':
        $name = $argv[3];
        must($database->query('INSERT INTO ' . $database->table_name('users', true)
            . ' (username, mail_host, language, created) VALUES (?, ?, ?, ' . $database->now() . ')', $name, 'localhost', 'de_DE'), 'the user');
        $user = new rcube_user($database->insert_id('users'));
        must($user->insert_identity(['name' => "Über $name", 'email' => "$name@example.org", 'signature' => "--\n'$name' \\\n"]), 'the identity');
        must($user->save_prefs(['colour' => $name, 'binary' => "\x01\x7f"]), 'the preferences');
        $contacts = new rcube_contacts($database, $user->ID);
        foreach (range(1, 20) as $number) {
            $id = must($contacts->insert(['name' => "Person $number of $name \u{00e9}", 'email' => ["p$number@$name.example"], 'notes' => str_repeat("line $number\n", 50)]), 'the contact');
            $group ??= must($contacts->create_group("group of $name"), 'the group')['id'];
            $contacts->add_to_group($group, [$id]);
        }
        break;
}
$found = [];
$result = $database->query('SELECT user_id FROM ' . $database->table_name('users', true) . ' ORDER BY user_id');
while ($row = $database->fetch_assoc($result)) {
    $user = new rcube_user($row['user_id']);
    $contacts = new rcube_contacts($database, $user->ID);
    $contacts->set_pagesize(1000);
    $people = [];
    foreach ($contacts->list_records() as $one) {
        $people[] = [$one['ID'], $one['name'], array_filter($one, fn($key) => str_starts_with($key, "email"), ARRAY_FILTER_USE_KEY), md5($one['vcard'] ?? '')];
    }
    $found[] = [$user->data['username'], $user->get_prefs(), $user->list_identities(null, true), $contacts->list_groups(), $people];
}
$result = $database->query('SELECT value FROM ' . $database->table_name('system', true) . " WHERE name = 'roundcube-version'");
echo json_encode(['version' => $database->fetch_array($result)[0], 'users' => $found], JSON_THROW_ON_ERROR);
