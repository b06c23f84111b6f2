<?php
// Runs WordPress from the command line, through its own functions:
//   php wordpress.php FOLDER SOCKET DATABASE install | write NAME | upgrade [ALTERS] | read
// FOLDER: the unpacked package. upgrade: fails before that many ALTERs were run, if that is given.

[$_, $folder, $socket, $database, $wanted_action] = $argv;
define('ABSPATH', "$folder/");
define('DB_NAME', $database);
define('DB_USER', 'root');
define('DB_PASSWORD', '');
define('DB_HOST', "localhost:$socket");
define('DB_CHARSET', 'utf8mb4');
define('DB_COLLATE', '');
define('WP_SITEURL', 'http://127.0.0.1');
define('WP_HOME', 'http://127.0.0.1');
define('WP_HTTP_BLOCK_EXTERNAL', true);
define('DISABLE_WP_CRON', true);
define('AUTH_KEY', 'tests');
define('WP_ADMIN', $wanted_action === 'upgrade');
if ($wanted_action === 'install') {
    define('WP_INSTALLING', true);
}
foreach (['LOGGED_IN_KEY', 'SECURE_AUTH_KEY', 'NONCE_KEY', 'AUTH_SALT', 'LOGGED_IN_SALT', 'NONCE_SALT', 'SECURE_AUTH_SALT'] as $name) {
    define($name, $name);
}
$_SERVER += ['HTTP_HOST' => '127.0.0.1', 'REQUEST_URI' => '/', 'REQUEST_METHOD' => 'GET', 'SERVER_PROTOCOL' => 'HTTP/1.1'];
$table_prefix = 'wp_';

function wp_mail() {
    return true;
}

require ABSPATH . 'wp-settings.php';
require_once ABSPATH . 'wp-admin/includes/upgrade.php';

function fail_at(int $number): void {
    $altered = 0;
    add_filter('query', function ($query) use (&$altered, $number) {
        if (preg_match('/^\s*ALTER TABLE/i', $query) && ++$altered > $number) {
            fwrite(STDERR, "the upgrade fails before: $query\n");
            exit(1);
        }
        return $query;
    });
}

switch ($wanted_action) {
    case 'install':
        wp_install("Ein Blog \u{00fc}ber alles", 'admin', 'admin@example.org', true, '', 'password');
        break;
    case 'write':
        $name = $argv[5];
        $author = wp_insert_user(['user_login' => $name, 'user_pass' => 'x', 'user_email' => "$name@example.org", 'role' => 'editor']);
        $post = wp_insert_post([
            'post_title' => wp_slash("Über $name 'quoted' \\ \u{00e9}"),
            'post_content' => wp_slash(str_repeat("<!-- wp:paragraph -->\nText of $name; ''\\n\n", 200)),
            'post_status' => 'publish', 'post_author' => $author, 'tags_input' => ["tag $name"],
        ], true);
        if (is_wp_error($author) || is_wp_error($post)) {
            exit(1);
        }
        wp_insert_comment(['comment_post_ID' => $post, 'comment_content' => "of $name", 'comment_author' => $name]);
        add_post_meta($post, 'serialised', ['name' => $name, "binary\x01" => 1.5]);
        update_user_meta($author, 'colour', $name);
        update_option("tests_$name", ['written' => $name]);
        break;
    case 'upgrade':
        if (isset($argv[5])) {
            fail_at((int) $argv[5]);
        }
        wp_upgrade();
        break;
}
$posts = array_map(
    fn($post) => [$post->ID, $post->post_title, md5($post->post_content), get_post_meta($post->ID),
        array_map(fn($comment) => $comment->comment_content, get_comments(['post_id' => $post->ID, 'orderby' => 'comment_ID', 'order' => 'ASC'])),
        wp_get_post_tags($post->ID, ['fields' => 'names'])],
    get_posts(['numberposts' => -1, 'orderby' => 'ID', 'order' => 'ASC'])
);
$users = array_map(fn($user) => [$user->ID, $user->user_login, $user->roles, get_user_meta($user->ID, 'colour', true)],
    get_users(['orderby' => 'ID']));
$options = array_filter(wp_load_alloptions(), fn($name) => !str_contains($name, 'transient') && $name !== 'cron', ARRAY_FILTER_USE_KEY);
ksort($options);
echo json_encode(['version' => get_option('db_version'), 'posts' => $posts, 'users' => $users, 'options' => $options], JSON_THROW_ON_ERROR);
